//! TensorBoard's event files: scalars as `tensorflow.Event` messages in the frames of a TFRecord file.
//!
//! ```text
//! frame = length u64 | masked CRC-32C of the length u32 | message | masked CRC-32C of the message u32, little-endian
//! Event = 1: wall_time f64, 2: step i64, 3: file_version string (the first), 5: summary { 1: { 1: tag, 2: simple_value f32 } }
//! ```

use super::Series;

/// An event file of these series; `time` gives the seconds since 1970 at which a step was done.
pub fn events(series: &[Series], begun: f64, time: impl Fn(u64) -> f64) -> Vec<u8> {
    let mut file = Vec::new();
    let mut first = Message::default();
    first.double(1, begun);
    first.bytes(3, b"brain.Event:2");
    frame(&first.0, &mut file);
    for series in series {
        for &(step, value) in &series.points {
            let mut number = Message::default();
            number.bytes(1, series.name.as_bytes());
            // TensorBoard draws f32.
            number.float(2, value as f32);
            let mut summary = Message::default();
            summary.bytes(1, &number.0);
            let mut event = Message::default();
            event.double(1, time(step));
            event.varint(2, step);
            event.bytes(5, &summary.0);
            frame(&event.0, &mut file);
        }
    }
    file
}

/// The wire format of Protocol Buffers, as far as it is needed here.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        // A field that has its default value is not written.
        if value != 0 {
            self.raw(field << 3);
            self.raw(value);
        }
    }

    fn double(&mut self, field: u64, value: f64) {
        self.raw(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.raw(field << 3 | 2);
        self.raw(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.raw(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }
}

fn frame(message: &[u8], file: &mut Vec<u8>) {
    let length = (message.len() as u64).to_le_bytes();
    file.extend(length);
    file.extend(masked(crc32c(&length)).to_le_bytes());
    file.extend(message);
    file.extend(masked(crc32c(message)).to_le_bytes());
}

/// A checksum of data that hold checksums: turned by 15 bits and moved, as TFRecord wants it.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC with Castagnoli's polynomial, reflected, bit by bit: event files are small.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_the_standard() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn numbers_of_many_bytes() {
        let mut message = Message::default();
        message.varint(2, 300);
        message.varint(2, 0);
        assert_eq!(message.0, [0x10, 0xac, 0x02]);
    }
}
