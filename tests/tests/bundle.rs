//! The bundle's manifest: what is accepted, and the words with which the rest is refused.

use rscapret::{
    Error,
    bundle::{Bundle, FileEntry, Files, Licence, Training, Verifier, bundle_id, sha256_hex, verify},
};

fn bundle() -> Bundle {
    Bundle {
        format_version: 1,
        name: "demo".into(),
        files: Files {
            llm: FileEntry::of("llm.gguf", b"llm"),
            vision: FileEntry::of("vision.gguf", b"vision"),
            projections: FileEntry::of("projections.safetensors", b"projections"),
        },
        licences: vec![Licence { part: "weights".into(), terms: "CC-BY-NC-4.0".into() }],
        training: Training {
            config: "seed = 1\n".into(),
            data: vec!["ucm train".into()],
            commit: "abc".into(),
            ..Training::default()
        },
        notes: String::new(),
    }
}

fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut json: serde_json::Value = serde_json::from_slice(&bundle().to_json().unwrap()).unwrap();
    change(&mut json);
    Bundle::parse(&serde_json::to_vec(&json).unwrap()).unwrap_err().to_string()
}

#[test]
fn manifest_round_trips_and_its_digest_is_the_id() {
    let json = bundle().to_json().unwrap();
    assert_eq!(Bundle::parse(&json).unwrap(), bundle());
    assert_eq!(bundle().to_json().unwrap(), json);
    assert_eq!(bundle_id(&json), sha256_hex(&json));
    let other = Bundle { notes: "other".into(), ..bundle() };
    assert_ne!(bundle_id(&other.to_json().unwrap()), bundle_id(&json));
}

#[test]
fn other_versions_name_the_remedy() {
    let newer = refusal(|json| {
        json["format_version"] = 2.into();
        json["new_field"] = 1.into();
    });
    assert_eq!(
        newer,
        "expected bundle format 1 but found 2\nthe bundle was made by a newer version: update this program"
    );
    assert!(refusal(|json| json["format_version"] = 0.into()).contains("rscapret export"));
    assert!(refusal(|json| json["format_version"] = "1".into()).contains("invalid type"));
}

#[test]
fn unknown_and_missing_fields_are_refused() {
    assert!(refusal(|json| json["extra"] = 1.into()).contains("unknown field `extra`"));
    assert!(refusal(|json| json["files"]["llm"]["url"] = "x".into()).contains("unknown field `url`"));
    assert!(refusal(|json| drop(json["files"].as_object_mut().unwrap().remove("vision"))).contains("`vision`"));
    assert!(refusal(|json| drop(json.as_object_mut().unwrap().remove("training"))).contains("`training`"));
    assert!(refusal(|json| json["licences"] = serde_json::json!([])).contains("expected `licences`"));
    assert!(refusal(|json| json["name"] = " ".into()).contains("expected `name`"));
}

#[test]
fn paths_stay_inside_the_bundle() {
    for path in ["../llm.gguf", "/etc/passwd", "a/b", "a\\b", "..", ".", "", ".hidden", "C:x", "a\0b", "a\nb"] {
        let error = refusal(|json| json["files"]["llm"]["path"] = path.into());
        assert!(error.starts_with("files.llm: expected a plain file name but found"), "{path:?}: {error}");
    }
    for path in ["llm.gguf", "LLM.gguf", "bundle.json"] {
        let error = refusal(|json| json["files"]["vision"]["path"] = path.into());
        assert!(error.starts_with("files.vision: expected a file of its own"), "{path}: {error}");
    }
}

#[test]
fn digests_are_lower_case_hexadecimal() {
    for digest in ["".to_string(), "0".repeat(63), "G".repeat(64), "A".repeat(64)] {
        let error = refusal(|json| json["files"]["projections"]["sha256"] = digest.into());
        assert!(error.starts_with("files.projections: expected `sha256` to be 64"), "{error}");
    }
    assert!(refusal(|json| json["files"]["llm"]["bytes"] = 0.into()).contains("to have bytes"));
}

#[test]
fn files_are_checked_by_length_and_digest() {
    let entry = bundle().files.llm;
    verify(&entry, b"llm").unwrap();
    let error = verify(&entry, b"lln").unwrap_err();
    assert!(matches!(error.root(), Error::Hash { expected, .. } if *expected == entry.sha256));
    assert!(verify(&entry, b"llm2").unwrap_err().to_string().contains("expected 3 bytes but found 4 or more"));
    assert!(verify(&entry, b"l").unwrap_err().to_string().contains("expected 3 bytes but found 1"));

    let mut pieces = Verifier::new(&entry);
    for piece in [b"l", b"l", b"m"] {
        pieces.update(piece).unwrap();
    }
    pieces.finish().unwrap();
}
