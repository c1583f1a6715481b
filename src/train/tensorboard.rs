//! Event files, which TensorBoard draws: scalars and pictures by tag and step.
//!
//! An event file is a list of records, each a length (8 bytes, little-endian), the [`masked`] CRC-32C of those bytes (4),
//! the data, and the masked CRC-32C of the data (4). The data is a protobuf message `Event`; these are the fields that
//! are written here, by their numbers:
//!
//! ```text
//! Event       1 wall_time (double, seconds)   2 step (int64)   3 file_version (string)   5 summary   7 session_log
//! Summary     1 value (repeated)
//! Value       1 tag (string)   2 simple_value (float)   4 image
//! Image       1 height   2 width   3 colorspace (3: RGB)   4 encoded_image_string (bytes, a PNG)
//! SessionLog  1 status (1: START)
//! ```
//!
//! A process that goes on with a run begins a file of its own, with a START at its first step: TensorBoard forgets what
//! earlier files say of that step and those after it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use crate::data::Tile;
use crate::{Error, Result};

const PREFIX: &str = "events.out.tfevents.";

/// An event file that is being written. Each call is one write to the system, so that a process that is killed leaves
/// whole records, but perhaps for the last, which readers pass over.
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Begins a new event file in `folder`, for step `first` and those after it: what other files there say of them no
    /// longer counts.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(folder: &Path, first: usize) -> Result<Self> {
        // Readers take the files of a folder in the order of their names, whatever became of the clock meanwhile.
        let newest = fs::read_dir(folder).map_err(Error::io(folder, "list"))?;
        let newest = newest.filter_map(|entry| seconds(entry.ok()?.file_name().to_str()?)).max();
        let second = newest.map_or(0, |newest| newest.saturating_add(1)).max(now() as u64);
        let path = folder.join(format!("{PREFIX}{second:010}.amdanet.{}", std::process::id()));
        let file = File::create(&path).map_err(Error::io(&path, "create"))?;
        let mut events = Self { path, file };
        let mut version = event(0);
        version.bytes(3, b"brain.Event:2");
        let mut start = event(first);
        start.message(7, |log| log.number(1, 1));
        events.write(&[version, start])?;
        Ok(events)
    }

    /// Writes numbers, each with its tag: the part before the first `/` is the group that they are shown in.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn scalars<'a>(
        &mut self,
        step: usize,
        scalars: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        let mut event = event(step);
        event.message(5, |summary| {
            for (tag, value) in scalars {
                summary.message(1, |entry| {
                    entry.bytes(1, tag.as_bytes());
                    entry.float(2, value as f32);
                });
            }
        });
        self.write(&[event])
    }

    /// Writes a picture.
    ///
    /// # Errors
    /// When the file cannot be written, or the picture is too large for a PNG.
    pub fn picture(&mut self, step: usize, tag: &str, picture: &Tile) -> Result<()> {
        let (width, height) = (picture.width as u32, picture.height as u32);
        let mut png = Vec::new();
        PngEncoder::new(&mut png)
            .write_image(&picture.rgb, width, height, ExtendedColorType::Rgb8)
            .map_err(|e| Error::file(&self.path, format!("picture {tag}: {e}")))?;
        let mut event = event(step);
        event.message(5, |summary| {
            summary.message(1, |entry| {
                entry.bytes(1, tag.as_bytes());
                entry.message(4, |image| {
                    image.number(1, height.into());
                    image.number(2, width.into());
                    image.number(3, 3);
                    image.bytes(4, &png);
                });
            });
        });
        self.write(&[event])
    }

    fn write(&mut self, events: &[Message]) -> Result<()> {
        let records = events.iter().flat_map(|Message(data)| record(data)).collect::<Vec<u8>>();
        self.file.write_all(&records).map_err(Error::io(&self.path, "write"))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// The time in the name of an event file.
fn seconds(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

/// The start of an `Event`: the time and the step.
fn event(step: usize) -> Message {
    let mut event = Message::default();
    event.double(1, now());
    event.number(2, step as u64);
    event
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()].concat()
}

/// The checksum of a record: rotated and shifted, so that data that holds a checksum itself has another.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protobuf message: fields one after the other, each a key (number · 8 + wire type) and its value.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// Seven bits in a byte, the lowest first; the high bit says that more follow.
    fn varint(&mut self, mut value: u64) {
        while value > 0x7F {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of a file, their checksums checked.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            assert_eq!(masked(&file[..8]).to_le_bytes(), file[8..12]);
            let data = &file[12..12 + length];
            assert_eq!(masked(data).to_le_bytes(), file[12 + length..16 + length]);
            records.push(data.to_vec());
            file = &file[16 + length..];
        }
        records
    }

    /// The fields of a message: number and bytes, those of a varint being its number in 8 bytes.
    fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(data: &mut &[u8]) -> u64 {
            let end = data.iter().position(|byte| byte & 0x80 == 0).unwrap();
            let value = data[..=end].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7F));
            *data = &data[end + 1..];
            value
        }
        let mut fields = Vec::new();
        while !data.is_empty() {
            let key = varint(&mut data);
            let value = match key & 7 {
                0 => varint(&mut data).to_le_bytes().to_vec(),
                1 => data.split_off(..8).unwrap().to_vec(),
                2 => {
                    let length = varint(&mut data) as usize;
                    data.split_off(..length).unwrap().to_vec()
                }
                5 => data.split_off(..4).unwrap().to_vec(),
                wire => panic!("wire type {wire}"),
            };
            fields.push((key >> 3, value));
        }
        fields
    }

    fn number(value: u64) -> Vec<u8> {
        value.to_le_bytes().to_vec()
    }

    #[test]
    fn the_checksum_is_that_of_the_format() {
        // CRC-32C's check value, from its specification, masked by hand: 0xe3069283 turned right by 15 bits is
        // 0x2507c60d.
        assert_eq!(masked(b"123456789"), 0x2507_c60d_u32.wrapping_add(0xa282_ead8));
    }

    #[test]
    fn what_is_written_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path(), 301).unwrap();
        events.scalars(301, [("loss/total", 1.5), ("train/lr", 6.3e-5)]).unwrap();
        let picture = Tile { width: 3, height: 2, rgb: (0..18).collect() };
        events.picture(302, "val", &picture).unwrap();
        let records = records(&fs::read(&events.path).unwrap());
        let events: Vec<_> = records.iter().map(|record| fields(record)).collect();
        assert_eq!(events.len(), 4);
        for (event, step) in events.iter().zip([0, 301, 301, 302]) {
            let time = f64::from_le_bytes(event[0].1[..].try_into().unwrap());
            assert!(event[0].0 == 1 && (time - now()).abs() < 60.0, "{time}");
            assert_eq!(event[1], (2, number(step)));
        }
        assert_eq!(events[0][2], (3, b"brain.Event:2".to_vec()));
        assert_eq!((events[1][2].0, fields(&events[1][2].1)), (7, vec![(1, number(1))]));

        let values = fields(&events[2][2].1);
        let want = [("loss/total", 1.5_f32), ("train/lr", 6.3e-5)];
        for ((field, value), (tag, scalar)) in values.into_iter().zip(want) {
            let want = vec![(1, tag.as_bytes().to_vec()), (2, scalar.to_le_bytes().to_vec())];
            assert_eq!((field, fields(&value)), (1, want));
        }

        let value = fields(&fields(&events[3][2].1)[0].1);
        assert_eq!(value[0], (1, b"val".to_vec()));
        let image = fields(&value[1].1);
        assert_eq!(image[..3], [(1, number(2)), (2, number(3)), (3, number(3))]);
        assert_eq!(image::load_from_memory(&image[3].1).unwrap().to_rgb8().into_raw(), picture.rgb);
    }

    #[test]
    fn later_files_have_later_names() {
        let folder = tempfile::tempdir().unwrap();
        let ahead = now() as u64 + 5000;
        fs::write(folder.path().join(format!("{PREFIX}{ahead}.elsewhere.1")), "").unwrap();
        let names: Vec<_> = (0..3)
            .map(|step| {
                let path = Events::create(folder.path(), step).unwrap().path;
                seconds(path.file_name().unwrap().to_str().unwrap()).unwrap()
            })
            .collect();
        assert_eq!(names, [ahead + 1, ahead + 2, ahead + 3]);
    }
}
