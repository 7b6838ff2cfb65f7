//! What the authors of the four datasets of Cap-4 say is in them.

/// Published counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Published {
    /// Name of the dataset.
    pub name: &'static str,
    /// Images for training, validation and test.
    pub images: [usize; 3],
    /// Captions of all three.
    pub captions: usize,
}

const ALL: [Published; 4] = [
    // Lu et al., 2018.
    Published { name: "RSICD", images: [8734, 1094, 1093], captions: 54_605 },
    // Qu et al., 2016, both.
    Published { name: "UCM", images: [1680, 210, 210], captions: 10_500 },
    Published { name: "Sydney", images: [497, 58, 58], captions: 3_065 },
    // Cheng et al., 2022.
    Published { name: "NWPU", images: [25_200, 3_150, 3_150], captions: 157_500 },
];

/// The counts of a dataset by the first word of its name: `UCM`, `ucm-captions` and `UCM (val)` are the same one.
pub fn published(name: &str) -> Option<Published> {
    let word: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
    ALL.into_iter().find(|known| known.name.eq_ignore_ascii_case(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_by_their_first_word() {
        let name = |text| published(text).map(|found| found.name);
        assert_eq!(
            [name("ucm-captions"), name("RSICD (val)"), name("Sydney")],
            [Some("UCM"), Some("RSICD"), Some("Sydney")]
        );
        assert_eq!([name("UCMerced"), name("own"), name("")], [None; 3]);
    }

    #[test]
    fn every_image_has_five_captions() {
        assert!(ALL.iter().all(|known| known.captions == 5 * known.images.iter().sum::<usize>()));
    }
}
