//! Freed blocks of memory that wait for the next request of their size.
//!
//! A training step frees and asks for the same sizes over and over, and new memory is dear: fresh pages from the system
//! cost more than many of the loops that fill them, and a device's allocator as much time of the host as a launch. A pool
//! keeps freed blocks, but makes its owner no larger than [`most`] of its live peak: before a new allocation would, waiting
//! blocks are released.

use std::collections::BTreeMap;

/// Blocks of memory by their size, in units of the owner's choice.
pub struct Pool<B> {
    free: BTreeMap<usize, Vec<B>>,
    /// In `free`, in use, and the most that were in use at once since the start and since the last reset.
    waiting: usize,
    live: usize,
    most_live: usize,
    peak: usize,
}

/// The most that live and waiting blocks together take, where `peak` is the most that was ever alive at once. With less
/// room than a quarter, a step would throw away blocks that it soon asks for again.
pub fn most(peak: usize) -> usize {
    peak + peak / 4
}

impl<B> Pool<B> {
    /// An empty one.
    pub const fn empty() -> Self {
        Self { free: BTreeMap::new(), waiting: 0, live: 0, most_live: 0, peak: 0 }
    }

    /// What is alive now.
    pub fn live(&self) -> usize {
        self.live
    }

    /// The most that was alive at once since the start or the last [`Pool::reset_peak`].
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// Starts a new measurement of [`Pool::peak`] from what is alive now.
    pub fn reset_peak(&mut self) {
        self.peak = self.live;
    }

    /// Counts a new block of `size`.
    pub fn count(&mut self, size: usize) {
        self.live += size;
        self.peak = self.peak.max(self.live);
        self.most_live = self.most_live.max(self.live);
    }

    /// No longer counts a block of `size`, which its owner keeps or gives back elsewhere.
    pub fn discount(&mut self, size: usize) {
        self.live -= size;
    }

    /// A block of `size` that waits, which is counted then. Where none does, others are released until there is room for a
    /// new one, which the owner counts once it has it.
    pub fn take(&mut self, size: usize, mut release: impl FnMut(B)) -> Option<B> {
        if let Some(list) = self.free.get_mut(&size) {
            let found = list.pop();
            if list.is_empty() {
                self.free.remove(&size);
            }
            if found.is_some() {
                self.waiting -= size;
                self.count(size);
                return found;
            }
        }
        let live = self.live + size;
        while live + self.waiting > most(self.most_live.max(live)) {
            let Some(mut entry) = self.free.last_entry() else { break };
            self.waiting -= *entry.key();
            entry.get_mut().pop().into_iter().for_each(&mut release);
            if entry.get().is_empty() {
                entry.remove();
            }
        }
        None
    }

    /// Takes a block of `size` back; the block itself where there is no room for it.
    pub fn give(&mut self, size: usize, block: B) -> Option<B> {
        self.live -= size;
        if self.live + self.waiting + size > most(self.most_live) {
            return Some(block);
        }
        self.waiting += size;
        self.free.entry(size).or_default().push(block);
        None
    }

    /// All blocks that wait, which do so no longer.
    pub fn drain(&mut self) -> impl Iterator<Item = B> + use<B> {
        self.waiting = 0;
        std::mem::take(&mut self.free).into_values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block that waited, or "new".
    fn take(pool: &mut Pool<&'static str>, released: &mut Vec<&'static str>, size: usize) -> &'static str {
        pool.take(size, |block| released.push(block)).unwrap_or_else(|| {
            pool.count(size);
            "new"
        })
    }

    #[test]
    fn blocks_wait_for_their_size_and_make_room_for_others() {
        let (pool, released) = (&mut Pool::empty(), &mut Vec::new());
        assert_eq!([take(pool, released, 100), take(pool, released, 60)], ["new"; 2]);
        assert_eq!((pool.live(), pool.peak()), (160, 160));
        assert_eq!(pool.give(100, "a"), None);
        // 60 + 99 live and 100 waiting are more than 200.
        assert_eq!((take(pool, released, 99), &released[..]), ("new", &["a"][..]));
        assert_eq!(take(pool, released, 100), "new");
        assert_eq!((pool.live(), pool.peak()), (259, 259));
        assert_eq!((pool.give(100, "b"), pool.give(60, "c")), (None, None));
        assert_eq!([60, 60, 100].map(|size| take(pool, released, size)), ["c", "new", "b"]);
        assert_eq!((pool.live(), pool.peak()), (319, 319));
        pool.give(100, "b");
        pool.reset_peak();
        assert_eq!((pool.live(), pool.peak()), (219, 219));
        assert_eq!((pool.drain().collect::<Vec<_>>(), take(pool, released, 100)), (vec!["b"], "new"));
        assert_eq!(released.len(), 1);
    }

    #[test]
    fn a_block_without_room_comes_back() {
        let mut pool = Pool::empty();
        (0..2).for_each(|_| pool.count(10));
        assert_eq!(pool.give(10, 1), None);
        pool.discount(10);
        pool.count(20);
        assert_eq!(pool.give(20, 2), Some(2), "10 wait already, and 25 is the most");
    }

    #[test]
    fn what_was_asked_for_in_vain_counts_nothing() {
        let mut pool = Pool::empty();
        pool.count(100);
        assert_eq!(pool.take(1000, drop), None::<()>);
        assert_eq!((pool.live(), pool.peak(), pool.most_live), (100, 100, 100));
    }
}
