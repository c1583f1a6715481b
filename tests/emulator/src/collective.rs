//! What the lanes of a warp do together: `__syncwarp`, shuffles, votes, and the matrix instructions of ptx.cuh.

use half::{bf16, f16};

use crate::block::{Block, State, WARP, current, fail, suspend};
use crate::hooks;

/// An operation that some lanes of a warp wait in.
pub struct Group {
    kind: u32,
    mask: u32,
    arrived: u32,
    /// What each lane brings, and takes away.
    words: [*mut u32; WARP],
}

// The kinds, as include/cuda.h numbers them.
const SYNC: u32 = 0;
const SHUFFLE: u32 = 1;
const BALLOT: u32 = 2;
const MATRICES: u32 = 3;
const TRANSPOSED: u32 = 4;
const MMA_F16: u32 = 5;
const MMA_BF16: u32 = 6;

fn name(kind: u32) -> &'static str {
    match kind {
        SYNC => "__syncwarp",
        SHUFFLE => "a shuffle",
        BALLOT => "a vote",
        MATRICES | TRANSPOSED => "ldmatrix",
        _ => "mma",
    }
}

/// Waits until all lanes of `mask` are here; the last one does what is to be done.
#[unsafe(no_mangle)]
extern "C" fn emulated_warp(kind: u32, mask: u32, words: *mut u32) {
    let block = current();
    // SAFETY: kernels run only while their block is the current one. The words are on the stacks of lanes that stay
    // suspended until the last one has arrived. References to the block end before anything suspends.
    unsafe {
        let thread = (*block).running;
        let (warp, lane) = (thread / WARP, thread % WARP);
        if mask >> lane & 1 == 0 {
            fail(
                block,
                &format!("divergent shuffle: it is in {} whose mask {mask:#x} leaves it out", name(kind)),
            );
        }
        let groups = &mut (&mut (*block).groups)[warp];
        let found = groups.iter().position(|group| group.mask == mask && group.kind == kind);
        let index = found.unwrap_or_else(|| {
            groups.push(Group { kind, mask, arrived: 0, words: [std::ptr::null_mut(); WARP] });
            groups.len() - 1
        });
        groups[index].arrived |= 1 << lane;
        groups[index].words[lane] = words;
        if groups[index].arrived != mask {
            (&mut (*block).states)[thread] = State::Lanes;
            suspend(block);
            return;
        }
        let group = groups.swap_remove(index);
        if let Err((lane, why)) = group.finish(block, warp) {
            let message = (*block).message(warp * WARP + lane, &why);
            (*block).stop(message);
            suspend(block);
        }
        (*block).resume_lanes(warp, mask, thread);
    }
}

impl Block<'_> {
    /// Lets the lanes of `mask` run; `thread` does already.
    fn resume_lanes(&mut self, warp: usize, mask: u32, thread: usize) {
        self.shared.warp_barrier(warp, mask);
        let others = mask & !(1 << (thread % WARP));
        self.ready[warp] |= others;
        let mut lanes = others;
        while lanes != 0 {
            self.states[warp * WARP + lanes.trailing_zeros() as usize] = State::Ready;
            lanes &= lanes - 1;
        }
    }

    /// Which lane waits in vain in this warp, and for whom.
    pub fn divergent_shuffle(&self, warp: usize) -> String {
        let group = &self.groups[warp][0];
        let waiting = group.arrived.trailing_zeros() as usize;
        let missing = (group.mask & !group.arrived).trailing_zeros() as usize;
        let why = match self.states.get(warp * WARP + missing) {
            None => "does not exist",
            Some(State::Returned) => "has returned",
            Some(State::Barrier) => "waits at __syncthreads",
            Some(_) => "waits in another operation",
        };
        let why = format!(
            "divergent shuffle: it waits in {} with mask {:#x}, and lane {missing} {why}",
            name(group.kind),
            group.mask
        );
        self.message(warp * WARP + waiting, &why)
    }
}

impl Group {
    fn lanes(&self) -> impl Iterator<Item = usize> {
        let mask = self.mask;
        (0..WARP).filter(move |lane| mask >> lane & 1 == 1)
    }

    /// Does what all lanes have come for.
    ///
    /// # Safety
    /// Each lane's words are as many as its kind has.
    unsafe fn finish(&self, block: *mut Block<'static>, warp: usize) -> Result<(), (usize, String)> {
        // SAFETY: the caller vouches for the words.
        unsafe {
            match self.kind {
                SYNC => Ok(()),
                SHUFFLE => self.shuffle(),
                BALLOT => {
                    let votes = self
                        .lanes()
                        .filter(|lane| *self.words[*lane] != 0)
                        .fold(0, |all, lane| all | 1 << lane);
                    for lane in self.lanes() {
                        *self.words[lane] = votes;
                    }
                    Ok(())
                }
                MATRICES | TRANSPOSED => self.matrices(block, warp),
                MMA_F16 => {
                    self.multiply(|bits| f16::from_bits(bits).to_f32());
                    Ok(())
                }
                MMA_BF16 => {
                    self.multiply(|bits| bf16::from_bits(bits).to_f32());
                    Ok(())
                }
                kind => unreachable!("include/cuda.h has no operation {kind}"),
            }
        }
    }

    /// Words: two of the value, the lane to take it from.
    unsafe fn shuffle(&self) -> Result<(), (usize, String)> {
        let mut values = [[0; 2]; WARP];
        // SAFETY: each lane of the mask has three words.
        unsafe {
            for lane in self.lanes() {
                values[lane] = [*self.words[lane], *self.words[lane].add(1)];
            }
            for lane in self.lanes() {
                let source = *self.words[lane].add(2) as usize;
                if source >= WARP || self.mask >> source & 1 == 0 {
                    let why = format!(
                        "divergent shuffle: it reads lane {source}, which mask {:#x} leaves out",
                        self.mask
                    );
                    return Err((lane, why));
                }
                [*self.words[lane], *self.words[lane].add(1)] = values[source];
            }
        }
        Ok(())
    }

    /// ldmatrix.x4. Words: before, the address of a row of 8 numbers of 16 bits; after, a register of each matrix.
    unsafe fn matrices(&self, block: *mut Block<'static>, warp: usize) -> Result<(), (usize, String)> {
        let mut rows = [[0u16; 8]; WARP];
        // SAFETY: each lane has four words, and gives the address of 16 bytes; checked mode checks that.
        unsafe {
            for lane in self.lanes() {
                let words = self.words[lane];
                let address = (u64::from(*words) | u64::from(*words.add(1)) << 32) as usize;
                if !address.is_multiple_of(16) {
                    return Err((
                        lane,
                        "misaligned: ldmatrix needs rows at multiples of 16 bytes".to_string(),
                    ));
                }
                hooks::check_shared(block, warp * WARP + lane, address, 16, false)
                    .map_err(|why| (lane, why))?;
                rows[lane] = *(address as *const [u16; 8]);
            }
            for lane in 0..WARP {
                for matrix in 0..4 {
                    let at = |row: usize, column: usize| u32::from(rows[matrix * 8 + row][column]);
                    let (row, column) = (lane / 4, lane % 4 * 2);
                    *self.words[lane].add(matrix) = if self.kind == MATRICES {
                        at(row, column) | at(row, column + 1) << 16
                    } else {
                        at(column, row) | at(column + 1, row) << 16
                    };
                }
            }
        }
        Ok(())
    }

    /// mma.sync.aligned.m16n8k16.row.col. Words: 4 of d, 4 of a, 2 of b.
    unsafe fn multiply(&self, number: impl Fn(u16) -> f32) {
        let (mut a, mut b) = ([[0.0; 16]; 16], [[0.0; 8]; 16]);
        let pair = |word: u32| [number(word as u16), number((word >> 16) as u16)];
        // SAFETY: each lane has ten words.
        unsafe {
            for lane in 0..WARP {
                let (group, member) = (lane / 4, lane % 4);
                for i in 0..4 {
                    let (row, column) = (group + i % 2 * 8, member * 2 + i / 2 * 8);
                    a[row][column..column + 2].copy_from_slice(&pair(*self.words[lane].add(4 + i)));
                }
                for i in 0..2 {
                    for (j, x) in pair(*self.words[lane].add(8 + i)).into_iter().enumerate() {
                        b[member * 2 + j + i * 8][group] = x;
                    }
                }
            }
            for lane in 0..WARP {
                for i in 0..4 {
                    let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
                    let d = self.words[lane].add(i);
                    let mut sum = f32::from_bits(*d);
                    for k in 0..16 {
                        sum += a[row][k] * b[k][column];
                    }
                    *d = sum.to_bits();
                }
            }
        }
    }
}
