//! The C interface on a CUDA device: the emulator, or with `AMDANET_TEST_DEVICE=cuda` a real one.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "all of them call the interface, with what is valid or what it must refuse"
)]

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Arc, LazyLock};

use amdanet::checkpoint;
use amdanet::cuda::{self, driver::Driver, driver::Memory};
use amdanet::data::ClassSet;
use amdanet::ffi::*;
use amdanet::infer::{Engine, Pairs, Pixels, Wanted};
use amdanet::model::{Amdanet, Arch};
use amdanet::random::Stream;
use amdanet::{DType, Device, Result};
use emulator::{Emulator, Failing, Meeting, Options};
use tempfile::TempDir;

mod common;

const WIDTH: usize = 48;
const HEIGHT: usize = 40;
const CLASSES: usize = 5;

/// Device 0, on which every access is checked.
static EMULATOR: LazyLock<Arc<Emulator>> = LazyLock::new(|| Emulator::new(Options::checked()));
/// Device 1.
static FAILING: LazyLock<Arc<Failing>> = LazyLock::new(|| Failing::new(Emulator::new(Options::default())));
/// Device 2, of one test.
static QUIET: LazyLock<Arc<Emulator>> = LazyLock::new(|| Emulator::new(Options::default()));

fn is_real() -> bool {
    std::env::var_os("AMDANET_TEST_DEVICE").is_some_and(|name| name == "cuda")
}

fn opened(ordinal: usize, tf32: bool) -> Result<Arc<dyn Driver>> {
    match ordinal {
        0 if is_real() => cuda::gpu::Gpu::open(0, tf32),
        0 => Ok(EMULATOR.clone()),
        1 => Ok(FAILING.clone()),
        2 => Ok(QUIET.clone()),
        n => Err(amdanet::Error::cuda(format!("cuda:{n}"), "the devices are cuda:0 to cuda:2")),
    }
}

fn network() -> Amdanet {
    common::nano(Arch::Release, CLASSES, 3)
}

struct Model(*mut amdanet_model);

impl Model {
    fn new() -> Self {
        cuda::open_with(opened);
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("network.safetensors");
        checkpoint::save(&path, &network(), &ClassSet::pst900()).unwrap();
        let path = CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
        let mut model = null_mut();
        succeeds(unsafe { amdanet_model_load(path.as_ptr(), null(), &raw mut model) });
        Self(model)
    }

    fn session(&self, kind: amdanet_device_kind, set: impl FnOnce(&mut amdanet_session_params)) -> Session {
        let mut session = null_mut();
        succeeds(self.try_session(kind, set, &mut session));
        Session(session)
    }

    fn try_session(
        &self,
        kind: amdanet_device_kind,
        set: impl FnOnce(&mut amdanet_session_params),
        session: &mut *mut amdanet_session,
    ) -> amdanet_status {
        let mut params: amdanet_session_params = zeroed();
        succeeds(unsafe { amdanet_session_params_init(&raw mut params, size_of_val(&params)) });
        params.device = kind as u32;
        set(&mut params);
        unsafe { amdanet_session_create(self.0, &raw const params, session) }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        unsafe { amdanet_model_free(self.0) };
    }
}

struct Session(*mut amdanet_session);

impl Session {
    fn run(&self, frame: &amdanet_frame) -> amdanet_status {
        unsafe { amdanet_session_run(self.0, frame) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        unsafe { amdanet_session_free(self.0) };
    }
}

/// A structure of the interface with all bytes zero.
fn zeroed<T: Copy>() -> T {
    // SAFETY: any bytes are a value of the interface's structures.
    unsafe { std::mem::MaybeUninit::zeroed().assume_init() }
}

fn message() -> String {
    let mut text = vec![0u8; 4096];
    let length = unsafe { amdanet_last_error(text.as_mut_ptr().cast(), text.len()) };
    String::from_utf8_lossy(&text[..length]).into_owned()
}

#[track_caller]
fn succeeds(status: amdanet_status) {
    assert_eq!(status, amdanet_status::Ok, "{}", message());
}

#[track_caller]
fn fails(status: amdanet_status, expected: amdanet_status, says: &str) {
    assert_eq!(status, expected, "{}", message());
    assert!(message().contains(says), "{}", message());
}

fn frame() -> amdanet_frame {
    let mut frame: amdanet_frame = zeroed();
    succeeds(unsafe { amdanet_frame_init(&raw mut frame, size_of_val(&frame)) });
    (frame.width, frame.height) = (WIDTH as u32, HEIGHT as u32);
    frame
}

/// A picture as it lies in memory.
#[derive(Clone)]
struct Picture {
    bytes: Vec<u8>,
    stride: usize,
    channels: amdanet_channels,
    kind: amdanet_type,
    range: (f32, f32),
}

impl Picture {
    fn random(channels: amdanet_channels, kind: amdanet_type, gap: usize, range: (f32, f32)) -> Self {
        let count = match channels {
            amdanet_channels::Rgb | amdanet_channels::Bgr => 3,
            amdanet_channels::Rgba | amdanet_channels::Bgra => 4,
            amdanet_channels::Gray => 1,
        };
        let numbers = Stream::new(7, kind as u64);
        let size = match kind {
            amdanet_type::U8 => 1,
            amdanet_type::U16 => 2,
            amdanet_type::F32 => 4,
        };
        let stride = (WIDTH * count + gap) * size;
        let number = |i: usize| match kind {
            amdanet_type::U8 => vec![numbers.word(i as u64) as u8],
            amdanet_type::U16 => (numbers.word(i as u64) as u16).to_ne_bytes().to_vec(),
            amdanet_type::F32 => numbers.uniform(i as u64).to_ne_bytes().to_vec(),
        };
        let bytes = (0..stride / size * HEIGHT).flat_map(number).collect();
        Self { bytes, stride, channels, kind, range }
    }

    fn at(&self, data: *const c_void, memory: amdanet_memory) -> amdanet_picture {
        let (channels, kind, memory) = (self.channels as u32, self.kind as u32, memory as u32);
        let (black, white) = self.range;
        let (length, stride) = (self.bytes.len(), self.stride);
        amdanet_picture { data, length, stride, channels, r#type: kind, memory, reserved: 0, black, white }
    }

    fn on_host(&self) -> amdanet_picture {
        self.at(self.bytes.as_ptr().cast(), amdanet_memory::Host)
    }

    fn on_device(&self, device: &OnDevice) -> amdanet_picture {
        self.at(device.memory.address() as *const c_void, amdanet_memory::Cuda)
    }
}

/// Bytes in the memory of a device.
struct OnDevice {
    memory: Memory,
    len: usize,
}

impl OnDevice {
    fn new(ordinal: usize, bytes: &[u8]) -> Self {
        let driver = opened(ordinal, false).unwrap();
        let memory = Memory::new(&driver, bytes.len()).unwrap();
        // SAFETY: the memory is as long.
        unsafe { driver.upload(bytes, memory.address()).unwrap() };
        driver.synchronise().unwrap();
        Self { memory, len: bytes.len() }
    }

    fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        // SAFETY: the memory is as long.
        unsafe { self.memory.driver().download(self.memory.address(), &mut bytes).unwrap() };
        bytes
    }
}

/// Results with gaps of bytes between rows that must stay.
const GAP: u8 = 0xA5;

fn buffer(data: *mut c_void, length: usize, memory: amdanet_memory) -> amdanet_buffer {
    amdanet_buffer { data, length, stride: length / HEIGHT, memory: memory as u32, reserved: 0 }
}

/// Fused, labels, probabilities, each with gaps.
fn results(fused_pixel: usize) -> [Vec<u8>; 3] {
    [fused_pixel, 1, 4 * CLASSES].map(|pixel| vec![GAP; (WIDTH * pixel + 8) * HEIGHT])
}

fn on_host(frame: &mut amdanet_frame, results: &mut [Vec<u8>; 3]) {
    let buffers = results.each_mut().map(|r| buffer(r.as_mut_ptr().cast(), r.len(), amdanet_memory::Host));
    [frame.fused, frame.labels, frame.probabilities] = buffers;
}

fn on_device(frame: &mut amdanet_frame, results: &[OnDevice; 3]) {
    let buffers =
        results.each_ref().map(|r| buffer(r.memory.address() as *mut c_void, r.len, amdanet_memory::Cuda));
    [frame.fused, frame.labels, frame.probabilities] = buffers;
}

#[test]
fn frames_of_the_host_are_the_engines() {
    let model = Model::new();
    let precisions = [
        (amdanet_precision::F32, DType::F32),
        (amdanet_precision::F16, DType::F16),
        (amdanet_precision::Bf16, DType::BF16),
    ];
    for (precision, dtype) in precisions {
        let session = model.session(amdanet_device_kind::Cuda, |p| {
            p.precision = precision as u32;
            (p.width, p.height) = (WIDTH as u32, HEIGHT as u32);
        });
        let rgb = Picture::random(amdanet_channels::Rgb, amdanet_type::U8, 0, (0.0, 0.0));
        let mut frame = frame();
        (frame.visible, frame.infrared) = (rgb.on_host(), rgb.on_host());
        let mut results = results(3);
        on_host(&mut frame, &mut results);
        succeeds(session.run(&frame));

        let device = Device::Cuda(opened(0, false).unwrap());
        let engine = Engine::new(&network()).unwrap().to(&device, dtype).unwrap();
        let mut direct = engine.session();
        let pixels = Pixels::Bytes(&rgb.bytes);
        let pairs = Pairs { batch: 1, height: HEIGHT, width: WIDTH, visible: pixels, infrared: pixels };
        let wanted = Wanted { image: false, logits: false, probabilities: true };
        let output = direct.run(&pairs, wanted).unwrap();
        let probabilities: &[u8] = bytemuck::cast_slice(output.probabilities.unwrap());
        for (got, expected) in results.iter().zip([output.fused, output.labels, probabilities]) {
            let row = expected.len() / HEIGHT;
            for (got, expected) in got.chunks(got.len() / HEIGHT).zip(expected.chunks(row)) {
                assert_eq!(&got[..row], expected, "{precision:?}");
                assert_eq!(&got[row..], [GAP; 8], "{precision:?}");
            }
        }
        let mut info: amdanet_session_info = zeroed();
        info.struct_size = size_of_val(&info);
        succeeds(unsafe { amdanet_session_get_info(session.0, &raw mut info) });
        assert_eq!((info.device, info.ordinal), (amdanet_device_kind::Cuda as u32, 0));
        assert_eq!(info.precision, precision as u32);
        assert!(info.memory > 0);
    }
}

/// The same pictures in the device's memory, or one of the two, give the same bytes, in the device's memory or not.
#[test]
fn frames_of_the_device_are_those_of_the_host() {
    use amdanet_channels::*;
    use amdanet_type::*;
    let model = Model::new();
    let session = model.session(amdanet_device_kind::Cuda, |_| ());
    let cases = [
        (Rgb, U8, 0, (0.0, 0.0), Gray, U8, 3, (0.0, 0.0), Rgb, U8),
        (Bgr, U8, 5, (0.0, 0.0), Gray, U16, 0, (7000.0, 9000.0), Bgra, U8),
        (Rgba, F32, 1, (0.0, 0.0), Gray, U8, 0, (200.0, 10.0), Rgba, F32),
        (Bgra, U16, 2, (0.0, 0.0), Rgb, F32, 3, (0.25, 0.5), Bgr, F32),
    ];
    for (channels, kind, gap, range, other, other_kind, other_gap, other_range, to, to_kind) in cases {
        let visible = Picture::random(channels, kind, gap, range);
        let infrared = Picture::random(other, other_kind, other_gap, other_range);
        let mut frame = frame();
        (frame.fused_channels, frame.fused_type) = (to as u32, to_kind as u32);
        (frame.visible, frame.infrared) = (visible.on_host(), infrared.on_host());
        let pixel = if matches!(to, Rgba | Bgra) { 4 } else { 3 } * if to_kind == F32 { 4 } else { 1 };
        let mut expected = results(pixel);
        on_host(&mut frame, &mut expected);
        succeeds(session.run(&frame));

        let there = [&visible, &infrared].map(|picture| OnDevice::new(0, &picture.bytes));
        let places = [
            (visible.on_device(&there[0]), infrared.on_device(&there[1])),
            (visible.on_host(), infrared.on_device(&there[1])),
            (visible.on_device(&there[0]), infrared.on_host()),
        ];
        for (n, pictures) in places.into_iter().enumerate() {
            (frame.visible, frame.infrared) = pictures;
            let mut got = results(pixel);
            on_host(&mut frame, &mut got);
            succeeds(session.run(&frame));
            assert!(got == expected, "{kind:?} and {other_kind:?}, places {n}, results on the host");
            let got = results(pixel).map(|r| OnDevice::new(0, &r));
            on_device(&mut frame, &got);
            succeeds(session.run(&frame));
            let got = got.each_ref().map(OnDevice::read);
            assert!(got == expected, "{kind:?} and {other_kind:?}, places {n}, results on the device");
        }
    }
}

#[test]
fn floats_on_the_device_are_limited() {
    let model = Model::new();
    let session = model.session(amdanet_device_kind::Cuda, |_| ());
    let mut picture = Picture::random(amdanet_channels::Gray, amdanet_type::F32, 0, (0.0, 0.0));
    let number = |i: usize, v: f32, picture: &mut Picture| {
        picture.bytes[4 * i..4 * i + 4].copy_from_slice(&v.to_ne_bytes());
    };
    let run = |picture: &Picture| {
        let there = OnDevice::new(0, &picture.bytes);
        let mut frame = frame();
        (frame.visible, frame.infrared) = (picture.on_device(&there), picture.on_device(&there));
        let mut results = results(3);
        on_host(&mut frame, &mut results);
        succeeds(session.run(&frame));
        results
    };
    for (i, v) in [(3, 1.0), (4, 0.0), (5, 0.0)] {
        number(i, v, &mut picture);
    }
    let expected = run(&picture);
    for (i, v) in [(3, 1.5), (4, -2.0), (5, f32::NAN)] {
        number(i, v, &mut picture);
    }
    assert!(run(&picture) == expected);
}

#[test]
fn streams_are_waited_for_and_wait() {
    if std::env::var_os("AMDANET_TEST_DEVICE").is_some() {
        return; // There is no stream of another library.
    }
    let model = Model::new();
    let session = model.session(amdanet_device_kind::Cuda, |p| p.ordinal = 2);
    let picture = Picture::random(amdanet_channels::Rgb, amdanet_type::U8, 0, (0.0, 0.0));
    let there = OnDevice::new(2, &picture.bytes);
    let mut frame = frame();
    frame.stream = 0x1230 as *mut c_void;
    (frame.visible, frame.infrared) = (picture.on_device(&there), picture.on_device(&there));
    let results = results(3).map(|r| OnDevice::new(2, &r));
    on_device(&mut frame, &results);
    succeeds(session.run(&frame));
    assert_eq!(QUIET.meetings(), [Meeting::Follow(0x1230), Meeting::Lead(0x1230)]);
    // What is on the host is there when the call returns.
    let mut labels = vec![GAP; WIDTH * HEIGHT];
    frame.labels = buffer(labels.as_mut_ptr().cast(), labels.len(), amdanet_memory::Host);
    let mut ticket = 0;
    succeeds(unsafe { amdanet_session_submit(session.0, &raw const frame, &raw mut ticket) });
    succeeds(unsafe { amdanet_session_wait(session.0, ticket, AMDANET_WAIT_FOREVER) });
    assert_eq!(QUIET.meetings()[2..], [Meeting::Follow(0x1230)]);
    assert!(labels.iter().all(|&label| usize::from(label) < CLASSES));

    drop((session, model, there, results));
    assert_eq!((QUIET.live_bytes(), QUIET.live_allocations()), (0, 0));
}

#[test]
fn what_is_not_there_is_named() {
    let model = Model::new();
    let session = model.session(amdanet_device_kind::Cuda, |_| ());
    let picture = Picture::random(amdanet_channels::Gray, amdanet_type::F32, 1, (0.0, 0.0));
    let there = OnDevice::new(0, &picture.bytes);
    let mut frame = frame();
    let mut results = results(3);
    on_host(&mut frame, &mut results);
    (frame.visible, frame.infrared) = (picture.on_device(&there), picture.on_host());
    let with = |change: &dyn Fn(&mut amdanet_frame)| {
        let mut frame = frame;
        change(&mut frame);
        session.run(&frame)
    };
    let (argument, unsupported) = (amdanet_status::InvalidArgument, amdanet_status::Unsupported);
    let host = picture.bytes.as_ptr();
    fails(with(&|f| f.visible.data = host.cast()), argument, "frame.visible.data: ");
    fails(with(&|f| f.visible.data = f.visible.data.wrapping_byte_add(2)), argument, "frame.visible.data: ");
    // A real device knows its memory by mappings, which are larger than what was asked for.
    let past = if is_real() { 1 << 40 } else { 64 };
    fails(
        with(&|f| f.visible.data = f.visible.data.wrapping_byte_add(past)),
        argument,
        "frame.visible.data: ",
    );
    fails(
        with(&|f| (f.visible.stride, f.visible.length) = (198, 1 << 20)),
        argument,
        "frame.visible.stride: ",
    );
    fails(with(&|f| f.visible.memory = 2), argument, "frame.visible.memory: 2");
    fails(with(&|f| f.stream = 2 as *mut c_void), argument, "frame.stream: ");
    succeeds(with(&|_| ()));

    let cpu = model.session(amdanet_device_kind::Cpu, |_| ());
    fails(cpu.run(&frame), unsupported, "frame.visible.memory");
    frame.visible = picture.on_host();
    succeeds(cpu.run(&frame));
    frame.stream = 8 as *mut c_void;
    fails(cpu.run(&frame), unsupported, "frame.stream");

    let mut none = null_mut();
    let kind = amdanet_device_kind::Cuda;
    fails(model.try_session(kind, |p| p.ordinal = 7, &mut none), unsupported, "cuda:7");
    fails(model.try_session(kind, |p| p.precision = 4, &mut none), argument, "params.precision: 4");
    let kind = amdanet_device_kind::Auto;
    fails(model.try_session(kind, |p| p.ordinal = 1, &mut none), argument, "params.ordinal: 1");
    let kind = amdanet_device_kind::Cpu;
    fails(model.try_session(kind, |p| p.precision = 2, &mut none), unsupported, "params.precision");
    assert!(none.is_null());
    let limit = |p: &mut amdanet_session_params| p.memory_limit = 1000;
    let small = model.session(amdanet_device_kind::Auto, limit);
    frame.stream = null_mut();
    fails(small.run(&frame), amdanet_status::OutOfMemory, "params.memory_limit = 1000");
}

/// Every call to the device fails once, when a session is made and when it computes.
#[test]
fn a_device_that_fails_is_a_status() {
    let model = Model::new();
    let set = |p: &mut amdanet_session_params| {
        p.ordinal = 1;
        (p.width, p.height) = (WIDTH as u32, HEIGHT as u32);
    };
    // The weights stay on the device with the model.
    drop(model.session(amdanet_device_kind::Cuda, set));
    let (live, before) = (FAILING.live_bytes(), FAILING.calls());
    let session = model.session(amdanet_device_kind::Cuda, set);
    let calls = FAILING.calls() - before;
    assert!(calls > 100, "{calls}");
    drop(session);
    let mut without_graph = 0;
    for n in 1..=calls {
        FAILING.fail_at(n);
        let mut session = null_mut();
        let status = model.try_session(amdanet_device_kind::Cuda, set, &mut session);
        if session.is_null() {
            fails(status, amdanet_status::Device, "injected failure");
        } else {
            // Where only the capture failed.
            succeeds(status);
            without_graph += 1;
            drop(Session(session));
        }
        assert!(FAILING.live_bytes() == live, "call {n}");
    }
    assert!(without_graph > 0 && without_graph < calls / 2, "{without_graph} of {calls}");
    let session = model.session(amdanet_device_kind::Cuda, set);
    let picture = Picture::random(amdanet_channels::Rgb, amdanet_type::U8, 0, (0.0, 0.0));
    let mut frame = frame();
    (frame.visible, frame.infrared) = (picture.on_host(), picture.on_host());
    let mut expected = vec![0; WIDTH * HEIGHT];
    frame.labels = buffer(expected.as_mut_ptr().cast(), expected.len(), amdanet_memory::Host);
    let before = FAILING.calls();
    succeeds(session.run(&frame));
    let calls = FAILING.calls() - before;
    // The upload; what is recorded is launched as one graph.
    assert!(calls >= 1, "{calls}");
    let mut labels = vec![GAP; WIDTH * HEIGHT];
    frame.labels.data = labels.as_mut_ptr().cast();
    for n in 1..=calls {
        FAILING.fail_at(n);
        fails(session.run(&frame), amdanet_status::Device, "injected failure");
        assert!(labels.iter().all(|&label| label == GAP), "call {n}");
    }
    succeeds(session.run(&frame));
    assert!(labels == expected);
}
