//! A program `java` that speaks as METEOR's and SPICE's do, for tests without them.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

/// Plays both programs: METEOR's statistics are the number of words of its line, its score a tenth of each and of their
/// sum; SPICE gives every caption 0.25.
const SCRIPT: &str = r#"#!/bin/sh
case "$3" in
*meteor*)
    [ "$*" = "-Xmx2G -jar meteor-1.5.jar - - -stdio -l en -norm" ] && [ -f "$3" ] || exit 1
    while read -r verb line; do
        case "$verb" in
        SCORE) set -- $line; echo "$#.0" ;;
        EVAL) echo "$line" | awk '{ for (i = 2; i <= NF; i += 2) { print $i / 10; sum += $i } print sum / 10 }' ;;
        esac
    done ;;
*spice*)
    grep -q '"image_id":1' "$4" || exit 1
    echo '[{"image_id": 1, "scores": {"All": {"f": 0.25}}}, {"image_id": 0, "scores": {"All": {"f": 0.25}}}]' > "$8" ;;
esac
"#;

/// Writes it as `bin/java`, and a folder `jars` with the programs that it plays but without SPICE's parser. The PATH on which
/// it is found first.
///
/// # Panics
/// When the folder cannot be written.
pub fn write(folder: &Path) -> String {
    for (name, text) in [("bin/java", SCRIPT), ("jars/meteor/meteor-1.5.jar", ""), ("jars/spice/spice-1.0.jar", "")] {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let bin = folder.join("bin");
    fs::set_permissions(bin.join("java"), fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())
}
