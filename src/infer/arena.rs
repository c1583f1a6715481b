//! One block of memory for everything that a plan computes with.
//!
//! A buffer lives from the first step that names it to the last. Buffers whose lives overlap get places that do not.

use std::ops::Range;

use crate::Tensor;

/// Numbers in a cache line: every buffer begins with one.
const LINE: usize = 16;

/// A buffer of a plan, or a part of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slice {
    /// Which buffer.
    pub buffer: usize,
    /// First number within it.
    pub start: usize,
    /// Numbers.
    pub len: usize,
}

impl Slice {
    /// Part `index` of `count` equal ones.
    pub fn part(self, index: usize, count: usize) -> Self {
        let len = self.len / count;
        Self { start: self.start + index * len, len, ..self }
    }
}

/// How long a buffer is, and the steps that need it.
#[derive(Clone, Debug)]
pub struct Life {
    /// Numbers.
    pub len: usize,
    /// From the first step that names it to the last, both included; empty when no step does.
    pub steps: Range<usize>,
}

/// Places for buffers: the largest first, each at the lowest place that is free during its life. Returns where each
/// begins, and the length of the whole.
pub fn place(lives: &[Life]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..lives.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lives[i].len), lives[i].steps.start));
    let (mut starts, mut total) = (vec![0; lives.len()], 0);
    let mut placed: Vec<usize> = Vec::new();
    for i in order {
        let overlaps = |j: &usize| {
            lives[*j].steps.start < lives[i].steps.end && lives[i].steps.start < lives[*j].steps.end
        };
        let mut taken: Vec<Range<usize>> = placed
            .iter()
            .filter(|j| overlaps(j))
            .map(|&j| starts[j]..starts[j] + lives[j].len.next_multiple_of(LINE))
            .collect();
        taken.sort_by_key(|range| range.start);
        let mut at = 0;
        for range in taken {
            if at + lives[i].len.next_multiple_of(LINE) <= range.start {
                break;
            }
            at = at.max(range.end);
        }
        starts[i] = at;
        total = total.max(at + lives[i].len.next_multiple_of(LINE));
        placed.push(i);
    }
    (starts, total)
}

/// The memory, and where a plan's buffers lie in it.
pub struct Arena<'a> {
    /// All of it.
    pub memory: &'a mut [f32],
    /// Where each buffer begins.
    pub starts: &'a [usize],
}

impl Arena<'_> {
    /// Several slices at once, for reading and writing.
    ///
    /// # Panics
    /// When they overlap: a plan that names a buffer twice in a step, or past its end.
    pub fn views<const N: usize>(&mut self, slices: [Slice; N]) -> [&mut [f32]; N] {
        let ranges = slices.map(|s| {
            let start = self.starts[s.buffer] + s.start;
            start..start + s.len
        });
        match self.memory.get_disjoint_mut(ranges) {
            Ok(views) => views,
            Err(e) => panic!("buffers of a step: {e}"),
        }
    }
}

/// Memory of at least `len` numbers; what is there is kept if it suffices.
pub fn at_least(memory: &mut Tensor, len: usize) {
    if memory.len() < len {
        // Freed first, so that the two are never alive at once.
        *memory = Tensor::zeros([0]);
        *memory = Tensor::zeros([len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    #[test]
    fn lives_that_overlap_get_places_that_do_not() {
        let numbers = Stream::new(3, 0);
        for case in 0..50 {
            let draw =
                |i: usize, most: usize| (numbers.uniform((case * 100 + i) as u64) * most as f32) as usize;
            let lives: Vec<Life> = (0..20)
                .map(|i| {
                    let first = draw(3 * i, 30);
                    Life { len: draw(3 * i + 1, 200), steps: first..first + draw(3 * i + 2, 8) }
                })
                .collect();
            let (starts, total) = place(&lives);
            for (i, a) in lives.iter().enumerate() {
                assert!(starts[i] % LINE == 0 && starts[i] + a.len <= total);
                for (j, b) in lives.iter().enumerate().skip(i + 1) {
                    let together = a.steps.start < b.steps.end && b.steps.start < a.steps.end;
                    let apart = starts[i] + a.len <= starts[j] || starts[j] + b.len <= starts[i];
                    assert!(!together || apart, "{a:?} at {} and {b:?} at {}", starts[i], starts[j]);
                }
            }
            let most = (0..40).map(|step| {
                let alive = lives.iter().filter(|l| l.steps.contains(&step));
                alive.map(|l| l.len.next_multiple_of(LINE)).sum::<usize>()
            });
            assert!(total >= most.max().unwrap_or(0));
        }
    }

    #[test]
    fn a_chain_needs_two_buffers() {
        let lives: Vec<Life> = (0..10).map(|i| Life { len: 64, steps: i..i + 2 }).collect();
        assert_eq!(place(&lives).1, 128);
    }
}
