//! A driver that fails on purpose.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use amdanet::cuda::driver::{Driver, Graph, Launch, Product};
use amdanet::{Error, Result};

/// Passes everything on, and fails once where it is told to.
pub struct Failing {
    inner: Arc<dyn Driver>,
    calls: AtomicUsize,
    fails_at: AtomicUsize,
    live: AtomicUsize,
}

impl Failing {
    /// Passes calls on to `inner`.
    pub fn new(inner: Arc<dyn Driver>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            calls: AtomicUsize::new(0),
            fails_at: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
        })
    }

    /// Makes the `n`-th call from now on fail: 1 is the next allocation, launch, product, upload, copy, fill, or beginning or
    /// end of work aside.
    pub fn fail_at(&self, n: usize) {
        self.fails_at.store(self.calls() + n, SeqCst);
    }

    /// How many calls there were that can be made to fail.
    pub fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    /// Bytes that are allocated.
    pub fn live_bytes(&self) -> usize {
        self.live.load(SeqCst)
    }

    fn count(&self, what: impl std::fmt::Display) -> Result<()> {
        if self.calls.fetch_add(1, SeqCst) + 1 == self.fails_at.load(SeqCst) {
            return Err(Error::cuda(what, "injected failure"));
        }
        Ok(())
    }
}

impl Driver for Failing {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn capability(&self) -> (u32, u32) {
        self.inner.capability()
    }

    fn queue(self: Arc<Self>) -> Result<Arc<dyn Driver>> {
        Ok(self)
    }

    fn aside(&self) -> Result<()> {
        self.count("aside")?;
        self.inner.aside()
    }

    fn back(&self) {
        self.inner.back();
    }

    fn join(&self) -> Result<()> {
        // What was queued is done all the same.
        let done = self.inner.join();
        self.count("join")?;
        done
    }

    unsafe fn follow(&self, stream: u64) -> Result<()> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.inner.follow(stream) }
    }

    unsafe fn lead(&self, stream: u64) -> Result<()> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.inner.lead(stream) }
    }

    fn holds(&self, address: u64) -> bool {
        self.inner.holds(address)
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.count(format_args!("allocation of {bytes} bytes"))?;
        let address = self.inner.allocate(bytes)?;
        self.live.fetch_add(bytes, SeqCst);
        Ok(address)
    }

    fn free(&self, address: u64, bytes: usize) {
        self.live.fetch_sub(bytes, SeqCst);
        self.inner.free(address, bytes);
    }

    unsafe fn upload(&self, data: &[u8], to: u64) -> Result<()> {
        self.count(format_args!("upload of {} bytes", data.len()))?;
        // SAFETY: the caller's promise is passed on.
        unsafe { self.inner.upload(data, to) }
    }

    unsafe fn download(&self, from: u64, data: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.inner.download(from, data) }
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.count(format_args!("copy of {bytes} bytes"))?;
        // SAFETY: the caller's promise is passed on.
        unsafe { self.inner.copy(from, to, bytes) }
    }

    unsafe fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<()> {
        self.count(format_args!("fill of {bytes} bytes"))?;
        // SAFETY: the caller's promise is passed on.
        unsafe { self.inner.fill(to, byte, bytes) }
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        self.count(launch)?;
        // SAFETY: the caller's promise is passed on.
        unsafe { self.inner.launch(launch) }
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        self.count(product)?;
        // SAFETY: the caller's promise is passed on.
        unsafe { self.inner.product(product) }
    }

    fn synchronise(&self) -> Result<()> {
        self.inner.synchronise()
    }

    fn begin_capture(&self) -> Result<()> {
        self.inner.begin_capture()
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        self.inner.end_capture()
    }
}
