//! Pictures for people: coloured labels, overlays and contact sheets.

/// An 8-bit RGB picture of a contact sheet, or the sheet itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tile {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `(height, width, 3)`, row-major.
    pub rgb: Vec<u8>,
}

/// The colour of an id that the palette does not have, ignored pixels above all.
const NO_CLASS: [u8; 3] = [255, 255, 255];

const BACKGROUND: u8 = 24;
const TEXT: u8 = 235;
const MARGIN: usize = 4;

/// Every id in its colour, as 8-bit RGB; ignored pixels (and ids without a colour) are white.
pub fn colorize(ids: &[u8], palette: &[[u8; 3]]) -> Vec<u8> {
    ids.iter().flat_map(|id| *palette.get(usize::from(*id)).unwrap_or(&NO_CLASS)).collect()
}

/// Labels laid over an 8-bit RGB picture: `alpha` of the class colour and the rest of the picture, 0.5 being a good
/// choice. Class 0, the background, and ignored pixels stay as they are.
pub fn overlay(rgb: &[u8], ids: &[u8], palette: &[[u8; 3]], alpha: f32) -> Vec<u8> {
    let mut out = rgb.to_vec();
    for (pixel, id) in out.as_chunks_mut::<3>().0.iter_mut().zip(ids) {
        let Some(color) = palette.get(usize::from(*id)).filter(|_| *id != 0) else { continue };
        for (value, color) in pixel.iter_mut().zip(color) {
            *value = (f32::from(*value) * (1.0 - alpha) + f32::from(*color) * alpha).round() as u8;
        }
    }
    out
}

/// A grid of pictures with a title above each column. All cells are as large as the largest tile; smaller ones are
/// centred. Titles are drawn in capitals and cut to the width of a column.
pub fn contact_sheet(titles: &[&str], rows: &[Vec<Tile>]) -> Tile {
    let largest = |of: fn(&Tile) -> usize| rows.iter().flatten().map(of).max().unwrap_or(0);
    let (cell_width, cell_height) = (largest(|t| t.width), largest(|t| t.height));
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0).max(titles.len());
    let scale = (cell_width / 120).clamp(1, 4);
    let title_height = if titles.is_empty() { 0 } else { GLYPH_HEIGHT * scale + MARGIN };
    let left = |column: usize| MARGIN + column * (cell_width + MARGIN);
    let top = |row: usize| MARGIN + title_height + row * (cell_height + MARGIN);
    let (width, height) = (left(columns), top(rows.len()));
    let mut sheet = Tile { width, height, rgb: vec![BACKGROUND; width * height * 3] };
    for (column, title) in titles.iter().enumerate() {
        let fitting = cell_width / (GLYPH_STEP * scale);
        for (i, letter) in title.chars().take(fitting).enumerate() {
            sheet.draw(letter, left(column) + i * GLYPH_STEP * scale, MARGIN, scale);
        }
    }
    for (row, tiles) in rows.iter().enumerate() {
        for (column, tile) in tiles.iter().enumerate() {
            let x = left(column) + (cell_width - tile.width) / 2;
            sheet.paste(tile, x, top(row) + (cell_height - tile.height) / 2);
        }
    }
    sheet
}

impl Tile {
    fn paste(&mut self, tile: &Tile, x: usize, y: usize) {
        for (row, from) in tile.rgb.chunks_exact((tile.width * 3).max(1)).take(tile.height).enumerate() {
            let start = ((y + row) * self.width + x) * 3;
            self.rgb[start..start + from.len()].copy_from_slice(from);
        }
    }

    fn draw(&mut self, letter: char, x: usize, y: usize, scale: usize) {
        for (row, bits) in glyph(letter).into_iter().enumerate() {
            for column in (0..5).filter(|c| bits >> (4 - c) & 1 == 1) {
                for line in 0..scale {
                    let at = ((y + row * scale + line) * self.width + x + column * scale) * 3;
                    self.rgb[at..at + scale * 3].fill(TEXT);
                }
            }
        }
    }
}

const GLYPH_HEIGHT: usize = 7;
/// Five pixels and a gap.
const GLYPH_STEP: usize = 6;

/// A letter as seven rows of five bits, the leftmost bit highest; unknown ones are empty.
#[rustfmt::skip]
fn glyph(letter: char) -> [u8; GLYPH_HEIGHT] {
    match letter.to_ascii_uppercase() {
        '0' => [0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110],
        '1' => [0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
        '2' => [0b01110, 0b10001, 0b00001, 0b00110, 0b01000, 0b10000, 0b11111],
        '3' => [0b11110, 0b00001, 0b00001, 0b01110, 0b00001, 0b00001, 0b11110],
        '4' => [0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010],
        '5' => [0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110],
        '6' => [0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110],
        '7' => [0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000],
        '8' => [0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110],
        '9' => [0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100],
        'A' => [0b01110, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001],
        'B' => [0b11110, 0b10001, 0b10001, 0b11110, 0b10001, 0b10001, 0b11110],
        'C' => [0b01110, 0b10001, 0b10000, 0b10000, 0b10000, 0b10001, 0b01110],
        'D' => [0b11110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b11110],
        'E' => [0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b11111],
        'F' => [0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b10000],
        'G' => [0b01110, 0b10001, 0b10000, 0b10111, 0b10001, 0b10001, 0b01111],
        'H' => [0b10001, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001],
        'I' => [0b01110, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
        'J' => [0b00111, 0b00010, 0b00010, 0b00010, 0b00010, 0b10010, 0b01100],
        'K' => [0b10001, 0b10010, 0b10100, 0b11000, 0b10100, 0b10010, 0b10001],
        'L' => [0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b11111],
        'M' => [0b10001, 0b11011, 0b10101, 0b10101, 0b10001, 0b10001, 0b10001],
        'N' => [0b10001, 0b11001, 0b10101, 0b10011, 0b10001, 0b10001, 0b10001],
        'O' => [0b01110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01110],
        'P' => [0b11110, 0b10001, 0b10001, 0b11110, 0b10000, 0b10000, 0b10000],
        'Q' => [0b01110, 0b10001, 0b10001, 0b10001, 0b10101, 0b10010, 0b01101],
        'R' => [0b11110, 0b10001, 0b10001, 0b11110, 0b10100, 0b10010, 0b10001],
        'S' => [0b01111, 0b10000, 0b10000, 0b01110, 0b00001, 0b00001, 0b11110],
        'T' => [0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100],
        'U' => [0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01110],
        'V' => [0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01010, 0b00100],
        'W' => [0b10001, 0b10001, 0b10001, 0b10101, 0b10101, 0b11011, 0b10001],
        'X' => [0b10001, 0b10001, 0b01010, 0b00100, 0b01010, 0b10001, 0b10001],
        'Y' => [0b10001, 0b10001, 0b01010, 0b00100, 0b00100, 0b00100, 0b00100],
        'Z' => [0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b10000, 0b11111],
        '-' => [0, 0, 0, 0b11111, 0, 0, 0],
        '_' => [0, 0, 0, 0, 0, 0, 0b11111],
        '.' => [0, 0, 0, 0, 0, 0b01100, 0b01100],
        _ => [0; GLYPH_HEIGHT],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_take_their_colors_and_ignored_ones_are_white() {
        let palette = [[0, 0, 0], [10, 20, 30]];
        assert_eq!(colorize(&[1, 0, 255], &palette), [10, 20, 30, 0, 0, 0, 255, 255, 255]);
    }

    #[test]
    fn an_overlay_leaves_background_and_ignored_pixels_alone() {
        let palette = [[200, 200, 200], [10, 20, 31]];
        let rgb = [100, 100, 100, 100, 100, 100, 7, 8, 9];
        assert_eq!(overlay(&rgb, &[0, 1, 255], &palette, 0.5), [100, 100, 100, 55, 60, 66, 7, 8, 9]);
    }

    #[test]
    fn a_sheet_holds_every_tile_in_its_cell() {
        let tile = |value, width, height| Tile { width, height, rgb: vec![value; width * height * 3] };
        let sheet =
            contact_sheet(&["a", "fused 2"], &[vec![tile(1, 13, 5), tile(2, 13, 5)], vec![tile(3, 3, 3)]]);
        assert_eq!((sheet.width, sheet.height), (4 + 2 * 17, 4 + 11 + 2 * 9));
        let at = |x: usize, y: usize| sheet.rgb[(y * sheet.width + x) * 3];
        assert_eq!((at(4, 15), at(16, 19), at(17, 15), at(21, 15)), (1, 1, BACKGROUND, 2));
        // The small tile sits in the middle of its cell.
        assert_eq!((at(8, 25), at(9, 25), at(11, 27), at(12, 27)), (BACKGROUND, 3, 3, BACKGROUND));
        // Two letters of the second title fit; an "A" begins at the left of the first.
        assert_eq!((at(4, 4), at(5, 4), at(21, 4)), (BACKGROUND, TEXT, TEXT));
        assert_eq!(contact_sheet(&[], &[]).rgb.len(), MARGIN * MARGIN * 3);
    }
}
