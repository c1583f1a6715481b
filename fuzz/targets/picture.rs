//! Pictures and labels in every format.

use amdanet::data::{Limits, read_labels, read_rgb};

use super::scratch;

pub fn run(data: &[u8]) {
    let path = scratch("picture");
    std::fs::write(&path, data).expect("writing a file");
    let limits = Limits { max_pixels: 1 << 16 };
    if let Ok(picture) = read_rgb(&path, limits) {
        assert_eq!(picture.rgb.len(), 3 * picture.width * picture.height);
        assert!(picture.rgb.iter().all(|value| (0.0..=1.0).contains(value)));
        let _ = picture.to_rgb8();
    }
    if let Ok(labels) = read_labels(&path, limits) {
        assert_eq!(labels.ids.len(), labels.width * labels.height);
    }
}
