//! What the lanes of a warp do together: `__syncwarp`, shuffles, votes, and the matrix instructions of ptx.cuh.

use crate::block::{Block, WARP, Warp, current, fail, suspend};
use crate::hooks;

/// An operation that some lanes of a warp wait in.
#[derive(Clone, Copy)]
pub struct Group {
    kind: u32,
    mask: u32,
    arrived: u32,
}

// The kinds, as include/cuda.h numbers them. Above the lowest 8 bits a shuffle has the words of its value, and mma the
// number of products.
const SYNC: u32 = 0;
const SHUFFLE: u32 = 1;
const BALLOT: u32 = 2;
const MATRICES: u32 = 3;
const TRANSPOSED: u32 = 4;
const MMA_F16: u32 = 5;
const MMA_BF16: u32 = 6;

/// The most words of a value that is shuffled.
const MOST_WORDS: usize = 16;

// What matrix instructions do, in runtime.cpp.
unsafe extern "C" {
    fn emulated_ldmatrix(words: &mut [*mut u32; WARP], transposed: bool);
    fn emulated_mma_f16(words: &mut [*mut u32; WARP], products: u32);
    fn emulated_mma_bf16(words: &mut [*mut u32; WARP], products: u32);
}

fn name(kind: u32) -> &'static str {
    match kind & 0xFF {
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
            let why =
                format!("divergent shuffle: it is in {} whose mask {mask:#x} leaves it out", name(kind));
            fail(block, &why);
        }
        (*block).words(warp)[lane] = words;
        if !(*block).warp(warp).arrive(kind, mask, lane) {
            suspend(block);
            return;
        }
        let group = Group { kind, mask, arrived: mask };
        if let Err((lane, why)) = group.finish(block, warp) {
            let message = (*block).message(warp * WARP + lane, &why);
            (*block).stop(message);
            suspend(block);
        }
        // Shuffles, votes and matrix instructions do not order what lanes read and write.
        if kind == SYNC {
            (*block).shared.warp_barrier(warp, mask);
        }
        (*block).warp(warp).resume(mask & !(1 << lane));
    }
}

impl Warp {
    /// A lane has come to an operation; whether it is the last one, with which the operation is no longer waited for.
    fn arrive(&mut self, kind: u32, mask: u32, lane: usize) -> bool {
        let found = self.groups.iter().position(|group| group.mask == mask && group.kind == kind);
        let index = found.unwrap_or_else(|| {
            self.groups.push(Group { kind, mask, arrived: 0 });
            self.groups.len() - 1
        });
        self.groups[index].arrived |= 1 << lane;
        let complete = self.groups[index].arrived == mask;
        if complete {
            self.groups.swap_remove(index);
        }
        complete
    }
}

impl Block<'_> {
    /// Which lane waits in vain in this warp, and for whom.
    pub fn divergent_shuffle(&mut self, warp: usize) -> String {
        let Group { kind, mask, arrived } = self.warp(warp).groups[0];
        let waiting = arrived.trailing_zeros() as usize;
        let missing = (mask & !arrived).trailing_zeros() as usize;
        let why = format!(
            "divergent shuffle: it waits in {} with mask {mask:#x}, and lane {missing} {}",
            name(kind),
            self.warp(warp).state(missing)
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
        // SAFETY: the caller vouches for the words; matrix instructions are of all lanes.
        unsafe {
            let words = (*block).words(warp);
            match self.kind & 0xFF {
                SYNC => {}
                SHUFFLE => return self.shuffle(words, (self.kind >> 8) as usize),
                BALLOT => {
                    let votes =
                        self.lanes().filter(|lane| *words[*lane] != 0).fold(0, |all, lane| all | 1 << lane);
                    self.lanes().for_each(|lane| *words[lane] = votes);
                }
                MATRICES | TRANSPOSED => {
                    for lane in self.lanes() {
                        let address = words[lane].cast::<usize>().read_unaligned();
                        check_row(block, warp * WARP + lane, address).map_err(|why| (lane, why))?;
                    }
                    emulated_ldmatrix(words, self.kind == TRANSPOSED);
                }
                MMA_F16 => emulated_mma_f16(words, self.kind >> 8),
                MMA_BF16 => emulated_mma_bf16(words, self.kind >> 8),
                kind => unreachable!("include/cuda.h has no operation {kind}"),
            }
        }
        Ok(())
    }

    /// Words: those of the value, then the lane to take it from.
    unsafe fn shuffle(&self, words: &[*mut u32; WARP], count: usize) -> Result<(), (usize, String)> {
        let mut values = [[0; WARP]; MOST_WORDS];
        // SAFETY: each lane of the mask has as many words.
        unsafe {
            for lane in self.lanes() {
                for (i, values) in values[..count].iter_mut().enumerate() {
                    values[lane] = *words[lane].add(i);
                }
            }
            for lane in self.lanes() {
                let source = *words[lane].add(count) as usize;
                if source >= WARP || self.mask >> source & 1 == 0 {
                    let mask = self.mask;
                    let why =
                        format!("divergent shuffle: it reads lane {source}, which mask {mask:#x} leaves out");
                    return Err((lane, why));
                }
                for (i, values) in values[..count].iter().enumerate() {
                    *words[lane].add(i) = values[source];
                }
            }
        }
        Ok(())
    }
}

/// Checks the row of a matrix that a thread names in ldmatrix.
///
/// # Safety
/// `block` is the current one.
unsafe fn check_row(block: *mut Block<'static>, thread: usize, address: usize) -> Result<(), String> {
    if !address.is_multiple_of(16) {
        return Err("misaligned: ldmatrix needs rows at multiples of 16 bytes".to_string());
    }
    // SAFETY: the caller vouches for the block.
    unsafe { hooks::check_shared(block, thread, address, 16, false) }
}
