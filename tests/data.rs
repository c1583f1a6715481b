//! Files as users have them, good and bad: every bad one gives one line that names the file, the value and the
//! remedy, and none makes the program panic.

use std::fs;
use std::path::{Path, PathBuf};

use amdanet::Result;
use amdanet::data::{
    ClassSet, Dataset, Layout, Limits, Pair, Split, pairs, read_labels, read_pair, read_rgb, synth,
    write_gray, write_rgb,
};
use amdanet::model::{Arch, Encoder};
use amdanet::train::{Config, Examples, Recipe};
use image::{DynamicImage, GrayImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba};
use tempfile::TempDir;

const LIMITS: Limits = Limits { max_pixels: 1 << 26 };

/// The error's text, which must be one line with all of `parts` in it.
#[track_caller]
fn fails<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) -> String {
    let text = result.expect_err("an error").to_string();
    assert_eq!(text.lines().count(), 1, "{text:?}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    text
}

fn gray(path: &Path, width: usize, height: usize) {
    let ids: Vec<u8> = (0..width * height).map(|i| (i % 3) as u8).collect();
    write_gray(path, width, height, &ids).unwrap();
}

/// A picture with detail in it, so that every format has a body to cut.
fn detailed() -> RgbImage {
    RgbImage::from_fn(37, 23, |x, y| Rgb([(x * 7 % 256) as u8, (y * 11 % 256) as u8, (x * y % 256) as u8]))
}

#[test]
fn sixteen_bits_gray_and_alpha_are_read_right() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let wide = ImageBuffer::<Luma<u16>, _>::from_raw(2, 1, vec![0u16, 65535]).unwrap();
    let wide_rgb = ImageBuffer::<Rgb<u16>, _>::from_raw(1, 2, vec![1u16, 2, 3, 16384, 32768, 65535]).unwrap();
    for name in ["a.png", "a.tiff"] {
        DynamicImage::ImageLuma16(wide.clone()).save(at(name)).unwrap();
        let p = read_rgb(&at(name), LIMITS).unwrap();
        assert_eq!((p.width, p.height, p.rgb), (2, 1, vec![0.0, 0.0, 0.0, 1.0, 1.0, 1.0]));
        DynamicImage::ImageRgb16(wide_rgb.clone()).save(at(name)).unwrap();
        let p = read_rgb(&at(name), LIMITS).unwrap();
        let expected = [1.0f32, 2.0, 3.0, 16384.0, 32768.0, 65535.0].map(|v| v / 65535.0);
        assert_eq!((p.width, p.height, p.rgb), (1, 2, expected.to_vec()));
    }
    let ga = ImageBuffer::<LumaA<u8>, _>::from_raw(2, 1, vec![51u8, 0, 102, 9]).unwrap();
    DynamicImage::ImageLumaA8(ga).save(at("ga.png")).unwrap();
    assert_eq!(read_rgb(&at("ga.png"), LIMITS).unwrap().rgb, [0.2, 0.2, 0.2, 0.4, 0.4, 0.4]);
    assert_eq!(read_labels(&at("ga.png"), LIMITS).unwrap().ids, [51, 102]);
    let rgba = ImageBuffer::<Rgba<u8>, _>::from_raw(1, 1, vec![51u8, 102, 153, 9]).unwrap();
    for name in ["rgba.png", "rgba.tif", "rgba.bmp"] {
        DynamicImage::ImageRgba8(rgba.clone()).save(at(name)).unwrap();
        assert_eq!(read_rgb(&at(name), LIMITS).unwrap().rgb, [0.2, 0.4, 0.6]);
    }
    // The content decides, not the name.
    fs::copy(at("rgba.bmp"), at("really_a_bmp.jpg")).unwrap();
    assert_eq!(read_rgb(&at("really_a_bmp.jpg"), LIMITS).unwrap().rgb, [0.2, 0.4, 0.6]);
    DynamicImage::ImageRgb8(detailed()).save(at("d.jpg")).unwrap();
    let p = read_rgb(&at("d.jpg"), LIMITS).unwrap();
    assert_eq!((p.width, p.height, p.rgb.len()), (37, 23, 37 * 23 * 3));
}

#[test]
fn labels_are_read_from_gray_palette_and_narrow_pictures() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_gray(&at("l.png"), 3, 2, &[0, 1, 2, 3, 4, 255]).unwrap();
    assert_eq!(read_labels(&at("l.png"), LIMITS).unwrap().ids, [0, 1, 2, 3, 4, 255]);
    GrayImage::from_raw(3, 1, vec![0, 7, 255]).unwrap().save(at("l.bmp")).unwrap();
    assert_eq!(read_labels(&at("l.bmp"), LIMITS).unwrap().ids, [0, 7, 255]);
    let mut bmp = bmp_header(8, 1);
    bmp[28] = 1;
    fs::write(at("narrow.bmp"), bmp).unwrap();
    fails(read_labels(&at("narrow.bmp"), LIMITS), &["narrow.bmp", "fewer than 8 bits"]);
    let mut tiff = tiff_header(8, 1);
    tiff[42] = 1;
    fs::write(at("narrow.tiff"), tiff).unwrap();
    fails(read_labels(&at("narrow.tiff"), LIMITS), &["narrow.tiff", "fewer than 8 bits"]);
    write_rgb(&at("equal.png"), 2, 1, &[5, 5, 5, 9, 9, 9]).unwrap();
    assert_eq!(read_labels(&at("equal.png"), LIMITS).unwrap().ids, [5, 9]);
    let write = |name: &str, color, depth, palette: Option<Vec<u8>>, width, data: &[u8]| {
        let mut encoder = png::Encoder::new(fs::File::create(at(name)).unwrap(), width, 2);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if let Some(palette) = palette {
            encoder.set_palette(palette);
        }
        encoder.write_header().unwrap().write_image_data(data).unwrap();
    };
    let palette = Some(vec![9, 9, 9, 200, 0, 0, 0, 200, 0, 7, 7, 7]);
    write("p8.png", png::ColorType::Indexed, png::BitDepth::Eight, palette.clone(), 2, &[0, 3, 2, 1]);
    assert_eq!(read_labels(&at("p8.png"), LIMITS).unwrap().ids, [0, 3, 2, 1]);
    write("p2.png", png::ColorType::Indexed, png::BitDepth::Two, palette, 5, &[0x1B, 0xC0, 0xE4, 0x40]);
    assert_eq!(read_labels(&at("p2.png"), LIMITS).unwrap().ids, [0, 1, 2, 3, 3, 3, 2, 1, 0, 1]);
    write("g4.png", png::ColorType::Grayscale, png::BitDepth::Four, None, 3, &[0x12, 0x30, 0xF0, 0x80]);
    assert_eq!(read_labels(&at("g4.png"), LIMITS).unwrap().ids, [1, 2, 3, 15, 0, 8]);
    write("g16.png", png::ColorType::Grayscale, png::BitDepth::Sixteen, None, 1, &[0, 8, 0, 255]);
    assert_eq!(read_labels(&at("g16.png"), LIMITS).unwrap().ids, [8, 255]);

    write("big.png", png::ColorType::Grayscale, png::BitDepth::Sixteen, None, 1, &[0, 8, 1, 0]);
    fails(read_labels(&at("big.png"), LIMITS), &["big.png: label 256 at x 0, y 1", "8-bit grey PNG"]);
    write_rgb(&at("color.png"), 2, 1, &[5, 5, 5, 64, 0, 128]).unwrap();
    fails(read_labels(&at("color.png"), LIMITS), &["color.png", "(64, 0, 128) at x 1, y 0", "as a grey PNG"]);
    DynamicImage::ImageRgb8(detailed()).save(at("l.jpg")).unwrap();
    fails(read_labels(&at("l.jpg"), LIMITS), &["l.jpg", "JPEG", "as a grey PNG"]);
}

#[test]
fn files_that_are_no_pictures_are_named() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fails(read_rgb(&at("missing.png"), LIMITS), &["missing.png: cannot read", "No such file"]);
    fails(read_rgb(dir.path(), LIMITS), &["not a file: give the path of a picture"]);
    for (name, bytes, why) in [
        ("empty.png", &b""[..], "is empty"),
        ("text.png", b"hello, this is a text and no picture", "convert it to PNG, JPEG, BMP or TIFF"),
        ("a.gif", b"GIF89a\x01\0\x01\0\0\0\0;", "Gif files"),
    ] {
        fs::write(at(name), bytes).unwrap();
        fails(read_rgb(&at(name), LIMITS), &[name, why]);
        fails(read_labels(&at(name), LIMITS), &[name, why]);
    }
    let float = ImageBuffer::<Rgb<f32>, _>::from_raw(1, 1, vec![0.5f32; 3]).unwrap();
    DynamicImage::ImageRgb32F(float).save(at("float.tiff")).unwrap();
    fails(read_rgb(&at("float.tiff"), LIMITS), &["float.tiff", "Rgb32F", "8 or 16 bits"]);
}

#[test]
fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
    let dir = TempDir::new().unwrap();
    let whole = dir.path().join("whole");
    let cut = dir.path().join("cut");
    let image = DynamicImage::ImageRgb8(detailed());
    for (image, format) in [
        (image.clone(), ImageFormat::Png),
        (image.clone(), ImageFormat::Jpeg),
        (image.clone(), ImageFormat::Bmp),
        (image.clone(), ImageFormat::Tiff),
        (image.to_luma16().into(), ImageFormat::Png),
        (image.to_luma16().into(), ImageFormat::Tiff),
        (image.to_luma8().into(), ImageFormat::Jpeg),
        (image.to_luma8().into(), ImageFormat::Bmp),
    ] {
        image.save_with_format(&whole, format).unwrap();
        let expected = read_rgb(&whole, LIMITS).unwrap();
        let bytes = fs::read(&whole).unwrap();
        let cuts = (0..64)
            .chain((64..bytes.len()).step_by(bytes.len() / 60 + 1))
            .chain(bytes.len() - 14..bytes.len());
        for length in cuts {
            fs::write(&cut, &bytes[..length]).unwrap();
            match read_rgb(&cut, LIMITS) {
                // What follows the pixels of a PNG or TIFF may be missed.
                Ok(p) => {
                    assert_eq!(p, expected, "{format:?} cut at {length} of {}", bytes.len());
                    assert!(length + 14 >= bytes.len(), "{format:?} cut at {length} of {}", bytes.len());
                }
                e => drop(fails(e, &["cut: "])),
            }
            if let Err(e) = read_labels(&cut, LIMITS) {
                assert_eq!(e.to_string().lines().count(), 1);
            }
        }
        // Flipped bytes: any result, but a result.
        for at in (0..bytes.len()).step_by(bytes.len() / 150 + 1) {
            for flip in [0x01, 0x80, 0xFF] {
                let mut bad = bytes.clone();
                bad[at] ^= flip;
                fs::write(&cut, &bad).unwrap();
                let results = [read_rgb(&cut, LIMITS).err(), read_labels(&cut, LIMITS).err()];
                assert!(results.into_iter().flatten().all(|e| e.to_string().lines().count() == 1));
            }
        }
    }
}

#[test]
fn a_jpeg_is_turned_as_its_exif_says_and_a_thumbnail_does_not_end_it() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("turned.jpg");
    DynamicImage::ImageRgb8(detailed()).save(&path).unwrap();
    let plain = read_rgb(&path, LIMITS).unwrap();
    let bytes = fs::read(&path).unwrap();
    // Orientation 6 (a quarter turn clockwise), then the end marker of what could be a thumbnail.
    let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
    exif.extend([0xFF, 0xD9]);
    let mut turned = vec![0xFF, 0xD8, 0xFF, 0xE1];
    turned.extend((exif.len() as u16 + 2).to_be_bytes());
    turned.extend(exif);
    turned.extend(&bytes[2..]);
    fs::write(&path, &turned).unwrap();
    let p = read_rgb(&path, LIMITS).unwrap();
    assert_eq!((p.width, p.height), (23, 37));
    assert_eq!(p.rgb[..3], plain.rgb[22 * 37 * 3..][..3], "the lower left corner comes to the upper left");
    fs::write(&path, &turned[..turned.len() - 40]).unwrap();
    fails(read_rgb(&path, LIMITS), &["turned.jpg", "ends before the picture does"]);
}

/// A PNG that is all header.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let mut crc = !0u32;
    for byte in &chunk {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(chunk);
    png.extend((!crc).to_be_bytes());
    // The header of the pixels, which decoders look for before they report a size.
    png.extend(b"\0\0\x10\0IDAT");
    png
}

/// A BMP that is all header.
fn bmp_header(width: i32, height: i32) -> Vec<u8> {
    let mut bmp = b"BM".to_vec();
    bmp.extend([54u32, 0, 54, 40].into_iter().flat_map(u32::to_le_bytes));
    bmp.extend([width, height].into_iter().flat_map(i32::to_le_bytes));
    bmp.extend([1, 0, 24, 0]);
    bmp.extend([0; 24]);
    bmp
}

/// A TIFF that is all header: RGB, one strip.
fn tiff_header(width: u32, height: u32) -> Vec<u8> {
    let mut tiff = b"II*\0\x08\0\0\0".to_vec();
    let entries: [(u16, u32); 8] =
        [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (278, height), (279, 12)];
    tiff.extend((entries.len() as u16).to_le_bytes());
    for (tag, value) in entries {
        tiff.extend(tag.to_le_bytes());
        tiff.extend(4u16.to_le_bytes());
        tiff.extend(1u32.to_le_bytes());
        tiff.extend(value.to_le_bytes());
    }
    tiff.extend([0; 4]);
    tiff
}

/// A JPEG that is all header.
fn jpeg_header(width: u16, height: u16) -> Vec<u8> {
    let mut jpeg = vec![0xFF, 0xD8, 0xFF, 0xC0, 0, 11, 8];
    jpeg.extend(height.to_be_bytes());
    jpeg.extend(width.to_be_bytes());
    jpeg.extend([1, 1, 0x11, 0, 0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 63, 0, 0xFF, 0xD9]);
    jpeg
}

#[test]
fn sizes_of_zero_and_gigantic_ones_fail_before_anything_is_allocated() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("huge");
    let limit = "above the limit of 67108864: make the picture smaller, or raise the limit with --max-pixels";
    for (bytes, parts) in [
        (png_header(100_000, 100_000), ["100000×100000 pixels are", limit]),
        (png_header(8193, 8192), ["8193×8192 pixels are", limit]),
        (bmp_header(60_000, 60_000), ["60000×60000 pixels are", limit]),
        (bmp_header(60_000, -60_000), ["60000×60000 pixels are", limit]),
        (tiff_header(100_000, 100_000), ["100000×100000 pixels are", limit]),
        (jpeg_header(65_000, 65_000), ["65000×65000 pixels are", limit]),
        // Beyond what these formats' decoders take at all.
        (bmp_header(100_000, 100_000), ["huge: ", "BMP"]),
        (bmp_header(i32::MAX, i32::MIN), ["huge: ", "BMP"]),
        (png_header(u32::MAX, u32::MAX), ["huge: ", "raise the limit with --max-pixels"]),
        (png_header(0, 5), ["huge: ", "PNG"]),
        (bmp_header(5, 0), ["huge: ", "0"]),
        (bmp_header(0, 5), ["huge: ", "0"]),
        (tiff_header(0, 5), ["huge: ", "0"]),
        (jpeg_header(0, 5), ["huge: ", "JPEG"]),
        // Nothing behind the header, within the limit.
        (png_header(8192, 8192), ["huge: ", "a damaged PNG file"]),
        (bmp_header(8192, 8192), ["huge: ", "a damaged BMP file"]),
        (tiff_header(8192, 8192), ["huge: ", "a damaged TIFF file"]),
    ] {
        fs::write(&path, bytes).unwrap();
        fails(read_rgb(&path, LIMITS), &parts);
        if parts[1] != "JPEG" && !parts[0].starts_with("65000") {
            fails(read_labels(&path, LIMITS), &parts);
        }
    }
    fs::write(&path, png_header(3, 3)).unwrap();
    fails(
        read_rgb(&path, Limits { max_pixels: 8 }),
        &["3×3 pixels are above the limit of 8", "--max-pixels"],
    );
}

#[test]
fn outputs_are_whole_or_absent() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a/b/c.png");
    write_rgb(&path, 2, 1, &[1, 2, 3, 4, 5, 6]).unwrap();
    write_rgb(&path, 1, 1, &[9, 8, 7]).unwrap();
    assert_eq!(read_rgb(&path, LIMITS).unwrap().to_rgb8(), [9, 8, 7]);
    assert_eq!(fs::read_dir(dir.path().join("a/b")).unwrap().count(), 1, "no temporary file stays");
    let below = path.join("d/e.png");
    fails(write_rgb(&below, 1, 1, &[0; 3]), &["c.png/d: cannot create the folder"]);
    fails(write_gray(&dir.path().join("a"), 1, 1, &[0]), &["/a: cannot write"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    fails(write_gray(&path, 2, 1, &[0]), &["c.png", "1 bytes were given for 2×1 pixels of 1 channels"]);
    fails(write_gray(&path, 0, 1, &[]), &["c.png", "0×1"]);
    fails(write_gray(Path::new("/"), 1, 1, &[0]), &["/: "]);
}

#[test]
fn folders_are_matched_by_name_without_extension() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in
        ["vi/b.png", "vi/a.PNG", "vi/only.x.png", "ir/a.Bmp", "ir/b.tiff", "ir/alone.jpg", "ir/._a.png"]
    {
        gray(&at(name), 2, 2);
    }
    fs::write(at("vi/notes.txt"), "no picture").unwrap();
    let found = pairs(&at("vi"), &at("ir")).unwrap();
    let expected = [("a", "vi/a.PNG", "ir/a.Bmp"), ("b", "vi/b.png", "ir/b.tiff")];
    let expected = expected.map(|(n, v, i)| Pair { name: n.into(), visible: at(v), infrared: at(i) });
    assert_eq!(found.pairs, expected);
    assert_eq!(found.unmatched_visible, [at("vi/only.x.png")]);
    assert_eq!(found.unmatched_infrared, [at("ir/alone.jpg")]);
    let (visible, infrared) = read_pair(&found.pairs[0], LIMITS).unwrap();
    assert_eq!((visible.width, infrared.height), (2, 2));

    let one = pairs(&at("vi/b.png"), &at("ir/a.Bmp")).unwrap();
    assert_eq!((one.pairs.len(), one.pairs[0].name.as_str()), (1, "b"));
    let parts = ["vi is a folder and", "a.Bmp is a file", "two files or two folders"];
    fails(pairs(&at("vi"), &at("ir/a.Bmp")), &parts);
    fails(pairs(&at("ir/a.Bmp"), &at("vi")), &parts);
    fails(pairs(&at("vi"), &at("nowhere")), &["nowhere: cannot read"]);
    fs::create_dir(at("empty")).unwrap();
    fails(pairs(&at("vi"), &at("empty")), &["no pair: none of the 3 pictures in", "of the 0 in", "empty"]);
    gray(&at("ir/a.png"), 2, 2);
    fails(pairs(&at("vi"), &at("ir")), &["a.Bmp: ", "a.png is also called \"a\": keep one"]);
}

#[test]
fn a_pair_of_different_sizes_names_both() {
    let dir = TempDir::new().unwrap();
    let (visible, infrared) = (dir.path().join("v.png"), dir.path().join("i.png"));
    gray(&visible, 4, 3);
    gray(&infrared, 3, 4);
    let pair = Pair { name: "v".into(), visible, infrared };
    fails(read_pair(&pair, LIMITS), &["v.png: 4×3 pixels, but", "i.png has 3×4", "register or resize them"]);
}

/// A flat data set of the samples `a` and `b.c`.
fn flat(root: &Path, folders: [&str; 3]) -> [PathBuf; 3] {
    let folders = folders.map(|f| root.join(f));
    for folder in &folders {
        for name in ["a.png", "b.c.png"] {
            gray(&folder.join(name), 4, 3);
        }
    }
    fs::write(root.join("train.txt"), "\u{feff}b.c\r\n\n  a.png \n").unwrap();
    fs::write(root.join("test.txt"), "a\n").unwrap();
    folders
}

#[test]
fn flat_data_sets_are_found_under_all_their_names() {
    for names in [["Visible", "Infrared", "Label"], ["RGB", "THE", "LABELS"], ["vi", "Thermal", "labels"]] {
        let dir = TempDir::new().unwrap();
        flat(dir.path(), names);
        let data = Dataset::open(dir.path(), Split::Train).unwrap();
        assert_eq!(data.names().collect::<Vec<_>>(), ["b.c", "a"]);
        fails(data.sample(0), &["the classes are not known", "classes.toml"]);
        let data = data.with_classes(ClassSet::unnamed(3).unwrap());
        let s = data.sample(1).unwrap();
        assert_eq!((s.name.as_str(), s.visible.width, s.infrared.height), ("a", 4, 3));
        assert_eq!(s.labels.ids, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]);
        fails(data.sample(2), &["no sample 2: the train split has 2"]);
        assert_eq!(Dataset::open(dir.path(), "test".parse().unwrap()).unwrap().len(), 1);
    }
    fails("dev".parse::<Split>(), &["\"dev\"", "train, val and test"]);
}

#[test]
fn what_a_data_set_lacks_is_named() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let [visible, infrared, labels] = flat(root, ["Visible", "Infrared", "Label"]);
    let open = |split| Dataset::open(root, split);
    fails(open(Split::Val), &["val.txt: the list is missing", "found test.txt, train.txt"]);
    fs::write(root.join("val.txt"), "\n \n").unwrap();
    fails(open(Split::Val), &["val.txt: the list holds no name"]);
    fs::write(root.join("val.txt"), [0xFF, 0xFE, 0x00]).unwrap();
    fails(open(Split::Val), &["val.txt: cannot read"]);
    fs::write(root.join("val.txt"), "a\nghost\nspirit.png\n").unwrap();
    fails(
        open(Split::Val),
        &["val.txt: \"ghost\" has no picture in", "Visible (2 of 3 names", "take the name off"],
    );
    fs::remove_file(infrared.join("b.c.png")).unwrap();
    fails(open(Split::Train), &["train.txt: \"b.c\" has no picture in", "Infrared (1 of 2"]);
    gray(&infrared.join("b.c.png"), 3, 3);
    let data = || open(Split::Train).unwrap().with_classes(ClassSet::unnamed(3).unwrap());
    fails(data().sample(0), &["Visible/b.c.png: 4×3", "Infrared/b.c.png has 3×3"]);
    gray(&infrared.join("b.c.png"), 4, 3);
    gray(&labels.join("b.c.png"), 4, 2);
    fails(data().sample(0), &["Label/b.c.png: 4×2", "Visible/b.c.png has 4×3"]);
    fs::remove_file(labels.join("b.c.png")).unwrap();
    write_gray(&labels.join("b.c.png"), 4, 3, &[0, 1, 255, 0, 2, 2, 3, 9, 0, 0, 0, 0]).unwrap();
    fails(data().sample(0), &["Label/b.c.png: label 3 at x 2, y 1", "3 classes (ids 0 to 2", "relabel"]);
    assert!(data().with_classes(ClassSet::mfnet()).sample(0).is_err());
    assert!(data().with_classes(ClassSet::fmb()).sample(0).is_ok());
    let small = data().with_limits(Limits { max_pixels: 11 });
    fails(small.sample(1), &["a.png: 4×3 pixels are above the limit of 11", "--max-pixels"]);

    fs::create_dir(root.join("RGB")).unwrap();
    fails(open(Split::Train), &["RGB: ", "Visible means the same: keep one"]);
    fs::remove_dir(root.join("RGB")).unwrap();
    fs::rename(&visible, root.join("colour")).unwrap();
    let parts = ["no folder Visible or RGB or vi (in any case)", "found Infrared, Label, colour"];
    fails(open(Split::Train), &parts);
    fails(Dataset::open(&root.join("nowhere"), Split::Train), &["nowhere: cannot read the folder"]);
    fails(Dataset::open(&infrared, Split::Train), &["Infrared: no data set that is known", "found none in"]);
    fs::rename(root.join("colour"), &visible).unwrap();
    fs::write(root.join("val.txt"), "a\nb.c\na.png\n").unwrap();
    fails(open(Split::Val), &["val.txt: \"a.png\" is there twice"]);
}

#[test]
fn every_layout_is_recognised_and_read_alike() {
    let dir = TempDir::new().unwrap();
    let (size, pairs, seed) = ((32, 40), 20, 5);
    let write =
        |layout, out: &Path| synth::write_as(layout, out, pairs, seed, size.0, size.1, &mut |_| ()).unwrap();
    let flat = dir.path().join("flat");
    write(Layout::Flat, &flat);
    let all = |root: &Path, split| {
        let data = Dataset::open(root, split).unwrap();
        let samples: Vec<_> = (0..data.len()).map(|i| data.sample(i).unwrap()).collect();
        samples
    };
    for layout in Layout::ALL {
        let root = dir.path().join(format!("{layout:?}"));
        write(layout, &root);
        assert_eq!(Layout::detect(&root).unwrap(), layout);
        assert!(all(&root, Split::Test) == all(&flat, Split::Test), "{layout}");
        let own_val = layout.stands_for(Split::Val) == Split::Val;
        let (mut train, val) = (all(&flat, Split::Train), all(&flat, Split::Val));
        if own_val {
            assert!(all(&root, Split::Val) == val);
        } else {
            assert!(all(&root, Split::Val) == all(&flat, Split::Test));
            train.extend(val);
            train.sort_by(|a, b| a.name.cmp(&b.name));
        }
        assert!(all(&root, Split::Train) == train, "{layout}");
        let found = layout.describe(&root);
        let counts =
            if own_val { "14 train, 3 val, 3 test" } else { "17 train, no val split of its own, 3 test" };
        assert!(found.contains(&layout.to_string()) && found.ends_with(counts), "{found}");
        // Without classes of its own a data set has those that its layout is published with.
        fs::remove_file(root.join("classes.toml")).unwrap();
        let classes = Dataset::open(&root, Split::Train).unwrap().classes().cloned();
        assert_eq!(classes, layout.classes());
    }
    // Two in one folder.
    let fmb = dir.path().join("another");
    write(Layout::Fmb, &fmb);
    for part in ["train", "test"] {
        fs::rename(fmb.join(part), flat.join(part)).unwrap();
    }
    let two = ["flat: fits flat layout and FMB's layout", "--layout"];
    fails(Dataset::open(&flat, Split::Train), &two);
    assert_eq!(Dataset::open_as(Layout::Flat, &flat, Split::Train).unwrap().len(), 14);
    assert_eq!(Dataset::open_as(Layout::Fmb, &flat, Split::Train).unwrap().len(), 17);
}

#[test]
fn a_layout_with_something_missing_says_what() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    synth::write_as(Layout::Mfnet, root, 8, 1, 32, 32, &mut |_| ()).unwrap();
    let open = || Dataset::open(root, Split::Train).unwrap();
    let name = open().names().next().unwrap().to_string();
    let image = root.join(format!("images/{name}.png"));
    let bytes = fs::read(&image).unwrap();
    fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
    fails(open().sample(0), &[&name, "PNG"]);
    fs::remove_file(&image).unwrap();
    write_rgb(&image, 32, 32, &[7; 32 * 32 * 3]).unwrap();
    fails(open().sample(0), &[&name, "3 channels, but MFNet's pictures have four", "flat layout"]);
    fs::write(&image, bytes).unwrap();
    assert!(open().sample(0).is_ok());
    fs::remove_file(root.join(format!("labels/{name}.png"))).unwrap();
    fails(Dataset::open(root, Split::Train), &["train.txt: ", &name, "no picture in", "labels (1 of"]);

    let root = &root.join("fmb");
    synth::write_as(Layout::Fmb, root, 8, 1, 32, 32, &mut |_| ()).unwrap();
    fs::write(root.join("train/Visible/notes.txt"), "a stray file").unwrap();
    assert!(Dataset::open(root, Split::Train).is_ok());
    let name = Dataset::open(root, Split::Train).unwrap().names().next().unwrap().to_string();
    fs::remove_file(root.join(format!("train/Infrared/{name}.png"))).unwrap();
    fails(Dataset::open(root, Split::Train), &["train: ", &name, "Infrared (1 of"]);
    fs::remove_dir_all(root.join("test")).unwrap();
    fails(Dataset::open(root, Split::Test), &["no folder test"]);
    fs::remove_dir_all(root.join("train/Visible")).unwrap();
    fs::create_dir(root.join("train/Visible")).unwrap();
    fails(Dataset::open(root, Split::Train), &["Visible: the folder holds no picture"]);
}

#[test]
fn names_may_have_spaces_and_any_letters() {
    let dir = TempDir::new().unwrap();
    let names = ["a b", "Straße 7", "夜.01"];
    for folder in ["Visible", "Infrared", "Label"] {
        names.iter().for_each(|name| gray(&dir.path().join(folder).join(format!("{name}.png")), 4, 3));
    }
    fs::write(dir.path().join("train.txt"), names.join("\r\n")).unwrap();
    let data = Dataset::open(dir.path(), Split::Train).unwrap().with_classes(ClassSet::unnamed(3).unwrap());
    assert_eq!(data.names().collect::<Vec<_>>(), names);
    assert!((0..3).all(|i| data.sample(i).is_ok()));
}

/// Batches come in order however they are made, an error comes in its place, and dropping the feed ends its threads.
#[test]
fn a_feed_gives_the_batches_of_its_steps() {
    let dir = TempDir::new().unwrap();
    synth::write(dir.path(), 9, 1, 32, 40, &mut |_| ()).unwrap();
    let data = Dataset::open(dir.path(), Split::Train).unwrap();
    let mut config =
        Config::new(None, Recipe::Release, Encoder::Nano, Arch::Release, Some(synth::CLASSES.len()));
    (config.augment.height, config.augment.width, config.run.batch) = (32, 32, 2);
    let examples = Examples::new(&data, &config).unwrap();
    std::thread::scope(|scope| {
        let feed = examples.feed(scope, 3..12).unwrap();
        let mut steps = 3..;
        for (batch, waited) in feed {
            let (batch, step) = (batch.unwrap(), steps.next().unwrap());
            let again = examples.batch(step).unwrap();
            assert!(waited >= 0.0);
            assert_eq!(batch.visible.f32(), again.visible.f32(), "step {step}");
            assert_eq!(batch.labels.as_slice::<u8>(), again.labels.as_slice::<u8>());
        }
        assert_eq!(steps.start, 12);
        // The scope ends although most batches were never asked for.
        drop(examples.feed(scope, 0..1_000_000).unwrap());
    });
    let name = data.names().next().unwrap().to_string();
    fs::write(dir.path().join(format!("Label/{name}.png")), "no picture").unwrap();
    let examples = Examples::new(&data, &config).unwrap();
    std::thread::scope(|scope| {
        let failed = examples.feed(scope, 0..4).unwrap().find_map(|(batch, _)| batch.err());
        assert!(failed.expect("an epoch has every sample").to_string().contains(&name));
    });
}

#[test]
fn classes_come_from_the_data_set() {
    let dir = TempDir::new().unwrap();
    flat(dir.path(), ["Visible", "Infrared", "Label"]);
    let file = dir.path().join("classes.toml");
    fs::write(
        &file,
        "[[class]]\nname = \"road\"\ncolor = [1, 2, 3]\n[[class]]\nname = \"sky\"\n[[class]]\nname = \"sea\"\n",
    )
    .unwrap();
    let data = Dataset::open(dir.path(), Split::Train).unwrap();
    let classes = data.classes().unwrap();
    assert_eq!(classes.names, ["road", "sky", "sea"]);
    assert_eq!(classes.palette, [[1, 2, 3], [128, 0, 0], [0, 128, 0]]);
    assert!(data.sample(0).is_ok());
    for (text, parts) in [
        ("[[class]]\nname = \"a\"\ncolour = [1, 2, 3]", ["line 3", "colour"]),
        ("[[class]]\nname = \"a\"\ncolor = [1, 2, 300]", ["line 3", "300"]),
        ("[[class]]\nname = \"a\"\n[[class]]\nname = \"a\"", ["\"a\"", "given twice"]),
        ("class = []", ["0 classes", "from 1 to 255"]),
        ("", ["missing field", "[[class]]"]),
    ] {
        fs::write(&file, text).unwrap();
        fails(Dataset::open(dir.path(), Split::Train), &["classes.toml: ", parts[0], parts[1]]);
    }
}
