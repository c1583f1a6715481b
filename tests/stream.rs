//! Streams of raw frames.

mod common;

use std::io::{self, Cursor, ErrorKind, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amdanet::Result;
use amdanet::infer::{Engine, Pairs, Pixels, Session, Wanted};
use amdanet::model::Arch;
use amdanet::stream::{End, Format, Source, Statistics, stream};
use common::{nano, save};

const SIZES: [(usize, usize); 3] = [(47, 33), (32, 32), (96, 64)];

fn session() -> Session {
    Engine::consume(nano(Arch::Release, 9, 1)).unwrap().session()
}

fn format((width, height): (usize, usize), labels: bool) -> Format {
    Format { width, height, labels }
}

/// Frame `index` of either modality.
fn frame(index: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * (2 * index + 3) / 7 + 31 * index) as u8).collect()
}

fn visible(index: usize, (w, h): (usize, usize)) -> Vec<u8> {
    frame(index, 3 * w * h)
}

fn infrared(index: usize, (w, h): (usize, usize)) -> Vec<u8> {
    frame(index + 100, w * h)
}

/// `count` frames of both modalities by turns.
fn interleaved(count: usize, size: (usize, usize)) -> Vec<u8> {
    (0..count).flat_map(|i| [visible(i, size), infrared(i, size)].concat()).collect()
}

/// What [`Session::run`] makes of each frame.
fn expected(count: usize, (width, height): (usize, usize), labels: bool) -> Vec<u8> {
    let mut session = session();
    let mut all = Vec::new();
    for i in 0..count {
        let size = (width, height);
        let gray: Vec<u8> = infrared(i, size).iter().flat_map(|&v| [v; 3]).collect();
        let rgb = visible(i, size);
        let (visible, infrared) = (Pixels::Bytes(&rgb), Pixels::Bytes(&gray));
        let pairs = Pairs { batch: 1, height, width, visible, infrared };
        let output = session.run(&pairs, Wanted::default()).unwrap();
        all.extend_from_slice(output.fused);
        all.extend_from_slice(if labels { output.labels } else { &[] });
    }
    all
}

fn source<R>(from: R, name: &str) -> Source<R> {
    Source { from, name: name.into() }
}

/// Takes `most` writes, then fails.
#[derive(Clone)]
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    most: usize,
    then: ErrorKind,
}

impl Output {
    fn new(most: usize, then: ErrorKind) -> Self {
        Self { bytes: Arc::default(), most, then }
    }

    fn taken(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

impl Write for Output {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if self.most == 0 {
            return Err(self.then.into());
        }
        self.most -= 1;
        self.bytes.lock().unwrap().extend_from_slice(from);
        Ok(from.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn run(
    visible: impl Read + Send + 'static,
    infrared: Option<Vec<u8>>,
    output: &Output,
    format: Format,
) -> Result<(End, Statistics)> {
    let mut session = session();
    let infrared = infrared.map(|bytes| source(Cursor::new(bytes), "ir.fifo"));
    let compute = |pair: &Pairs, take: &mut dyn FnMut(&[u8], &[u8])| {
        let output = session.run(pair, Wanted::default())?;
        take(output.fused, output.labels);
        Ok(())
    };
    stream(source(visible, "standard input"), infrared, output.clone(), format, [compute], |_| {})
}

/// A source that gives few bytes at a time.
struct Dribble(Cursor<Vec<u8>>);

impl Read for Dribble {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = to.len().min(1001);
        self.0.read(&mut to[..most])
    }
}

#[test]
fn frames_are_those_of_a_session() {
    for size in SIZES {
        for labels in [false, true] {
            let output = Output::new(usize::MAX, ErrorKind::Other);
            let from = Dribble(Cursor::new(interleaved(5, size)));
            let (end, statistics) = run(from, None, &output, format(size, labels)).unwrap();
            assert!(output.taken() == expected(5, size, labels), "{size:?} {labels}");
            assert_eq!((end, statistics.frames()), (End::Input, 5));
            let (median, worst) = statistics.latency();
            assert!(median > 0.0 && worst >= median && statistics.rate() > 0.0, "{statistics:?}");

            let output = Output::new(usize::MAX, ErrorKind::Other);
            let [vi, ir] = [visible, infrared].map(|f| (0..5).flat_map(|i| f(i, size)).collect::<Vec<u8>>());
            run(Cursor::new(vi), Some(ir), &output, format(size, labels)).unwrap();
            assert!(output.taken() == expected(5, size, labels), "{size:?} {labels} from two sources");
        }
    }
}

#[test]
fn what_is_complete_is_written_before_the_error() {
    let size = SIZES[0];
    let (whole, pixels) = (interleaved(3, size), size.0 * size.1);
    let two = expected(2, size, true);
    for cut in [1, pixels - 1, pixels, pixels + 1, 4 * pixels - 1] {
        let output = Output::new(usize::MAX, ErrorKind::Other);
        let from = Cursor::new(whole[..whole.len() - cut].to_vec());
        let text = run(from, None, &output, format(size, true)).unwrap_err().to_string();
        let found =
            format!("standard input: ends within frame 3, after {} of {}", 4 * pixels - cut, 4 * pixels);
        assert!(text.starts_with(&found) && text.contains("the 2 before it were written"), "{text}");
        assert!(output.taken() == two, "{cut}");
    }
    // The other source ends first, between two frames and within one.
    for (cut, part) in [(pixels, "ir.fifo: ends after 2 frames"), (5, "ir.fifo: ends within frame 3, after ")]
    {
        let [vi, mut ir] = [visible, infrared].map(|f| (0..3).flat_map(|i| f(i, size)).collect::<Vec<u8>>());
        ir.truncate(ir.len() - cut);
        let output = Output::new(usize::MAX, ErrorKind::Other);
        let text = run(Cursor::new(vi), Some(ir), &output, format(size, true)).unwrap_err().to_string();
        assert!(text.starts_with(part), "{text}");
        assert!(output.taken() == two, "{cut}");
    }
}

#[test]
fn no_frame_is_an_error() {
    let output = Output::new(usize::MAX, ErrorKind::Other);
    let text = run(io::empty(), None, &output, format(SIZES[0], false)).unwrap_err().to_string();
    assert!(text.starts_with("standard input: holds no frame") && text.contains("--width"), "{text}");
    let text = run(io::empty(), Some(vec![]), &output, format(SIZES[0], false)).unwrap_err().to_string();
    assert!(text.starts_with("standard input: holds no frame"), "{text}");
    let one = Cursor::new(visible(0, SIZES[0]));
    let text = run(one, Some(vec![]), &output, format(SIZES[0], false)).unwrap_err().to_string();
    assert!(text.starts_with("ir.fifo: holds no frame"), "{text}");
}

/// A source that must not be read.
struct Untouched;

impl Read for Untouched {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("was read")
    }
}

#[test]
fn sizes_are_refused_before_reading() {
    let output = Output::new(0, ErrorKind::Other);
    for size in [(31, 64), (64, 31), (0, 0), (16385, 64), (usize::MAX, usize::MAX)] {
        let text = run(Untouched, None, &output, format(size, false)).unwrap_err().to_string();
        assert!(text.contains(&format!("{}x{}", size.0, size.1)) && text.contains("32 to 16384"), "{text}");
    }
}

#[test]
fn a_reader_that_goes_ends_the_stream() {
    let size = SIZES[0];
    let endless = || Cursor::new(interleaved(1, size)).chain(io::repeat(7));
    let output = Output::new(3, ErrorKind::BrokenPipe);
    let (end, statistics) = run(endless(), None, &output, format(size, false)).unwrap();
    assert_eq!((end, statistics.frames()), (End::Output, 3));
    let output = Output::new(3, ErrorKind::StorageFull);
    let text = run(endless(), None, &output, format(size, false)).unwrap_err().to_string();
    assert!(text.starts_with("standard output: cannot write"), "{text}");
}

#[test]
fn an_error_of_the_network_is_handed_on() {
    let size = SIZES[0];
    let mut left = 2;
    let compute = |_: &Pairs, take: &mut dyn FnMut(&[u8], &[u8])| {
        if left == 0 {
            return Err(amdanet::Error::Config("no more".into()));
        }
        left -= 1;
        take(b"fused", b"labels");
        Ok(())
    };
    let output = Output::new(usize::MAX, ErrorKind::Other);
    let from = source(io::repeat(1), "standard input");
    let none = None::<Source<io::Empty>>;
    let text = stream(from, none, output.clone(), format(size, true), [compute], |_| {}).unwrap_err();
    assert_eq!(text.to_string(), "no more");
    assert_eq!(output.taken(), b"fusedlabelsfusedlabels");
}

/// Gives frames, and tells when each is asked for.
struct Told(Sender<()>);

impl Read for Told {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let _ = self.0.send(());
        to.fill(1);
        Ok(to.len())
    }
}

/// Waits for a message before it takes the first bytes.
struct Waiting(Option<Receiver<()>>);

impl Write for Waiting {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if let Some(wait) = self.0.take() {
            wait.recv_timeout(Duration::from_secs(20)).map_err(io::Error::other)?;
        }
        Ok(from.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn reading_computing_and_writing_overlap() {
    let (tell, asked) = channel();
    let (second, wait) = channel();
    let mut count = 0;
    let compute = move |_: &Pairs, take: &mut dyn FnMut(&[u8], &[u8])| {
        count += 1;
        match count {
            // Two reads for each pair: while the first is computed, the second is read.
            1 => (0..3).try_for_each(|_| asked.recv_timeout(Duration::from_secs(20))).unwrap(),
            // While the first is written, the second is computed.
            2 => second.send(()).unwrap(),
            9 => return Err(amdanet::Error::Config("enough".into())),
            _ => {}
        }
        take(b"fused", b"labels");
        Ok(())
    };
    let from = source(Told(tell), "standard input");
    let none = None::<Source<io::Empty>>;
    let text =
        stream(from, none, Waiting(Some(wait)), format(SIZES[0], false), [compute], |_| {}).unwrap_err();
    assert_eq!(text.to_string(), "enough");
}

type Computer = Box<dyn FnMut(&Pairs, &mut dyn FnMut(&[u8], &[u8])) -> Result<()> + Send>;

#[test]
fn computers_work_at_once_and_results_keep_their_order() {
    let (tell, told) = channel();
    // The first is done only when the second has begun the next frame.
    let first: Computer = Box::new(move |_, take| {
        told.recv_timeout(Duration::from_secs(20)).unwrap();
        take(b"1", b"a");
        Ok(())
    });
    let second: Computer = Box::new(move |_, take| {
        tell.send(()).unwrap();
        take(b"2", b"b");
        Ok(())
    });
    let output = Output::new(usize::MAX, ErrorKind::Other);
    let from = source(Cursor::new(interleaved(6, SIZES[0])), "standard input");
    let none = None::<Source<io::Empty>>;
    let format = format(SIZES[0], true);
    let (_, statistics) = stream(from, none, output.clone(), format, [first, second], |_| {}).unwrap();
    assert_eq!((output.taken(), statistics.frames()), (b"1a2b1a2b1a2b".to_vec(), 6));
}

#[test]
fn an_error_of_one_computer_ends_the_stream_behind_its_frame() {
    let first: Computer = Box::new(|_, take| {
        take(b"1", b"");
        Ok(())
    });
    let mut left = 1;
    let second: Computer = Box::new(move |_, take| {
        if left == 0 {
            return Err(amdanet::Error::Config("no more".into()));
        }
        left -= 1;
        take(b"2", b"");
        Ok(())
    });
    let output = Output::new(usize::MAX, ErrorKind::Other);
    let (from, none) = (source(io::repeat(1), "standard input"), None::<Source<io::Empty>>);
    let format = format(SIZES[0], false);
    let e = stream(from, none, output.clone(), format, [first, second], |_| {}).unwrap_err();
    assert_eq!((e.to_string().as_str(), output.taken()), ("no more", b"121".to_vec()));
}

/// The program, with a nano network for frames of `size`.
fn program(folder: &tempfile::TempDir, (width, height): (usize, usize)) -> Command {
    let weights = folder.path().join("w.safetensors");
    save(&weights, &nano(Arch::Release, 9, 1));
    let mut command = Command::new(env!("CARGO_BIN_EXE_amdanet"));
    command.arg("stream").arg("--weights").arg(weights);
    command.args(["--width", &width.to_string(), "--height", &height.to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Feeds `input`: exit code, standard output, standard error.
fn feed(command: &mut Command, input: Vec<u8>) -> (Option<i32>, Vec<u8>, String) {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    (output.status.code(), output.stdout, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_program_streams() {
    let folder = tempfile::tempdir().unwrap();
    let size = SIZES[0];
    let (code, fused, said) = feed(program(&folder, size).arg("--labels"), interleaved(4, size));
    assert!(code == Some(0) && fused == expected(4, size, true), "{said}");
    let parts = ["4 frames, ", " frames/s, latency ", " ms (median), ", " ms (worst)"];
    assert!(said.lines().count() == 1 && parts.iter().all(|part| said.contains(part)), "{said}");

    let mut cut = interleaved(2, size);
    cut.pop();
    let (code, fused, said) = feed(&mut program(&folder, size), cut);
    assert!(code == Some(1) && fused == expected(1, size, false), "{said}");
    assert!(
        said.lines().count() == 1 && said.starts_with("error: standard input: ends within frame 2"),
        "{said}"
    );

    let (code, _, said) = feed(&mut program(&folder, size), Vec::new());
    assert!(code == Some(1) && said.contains("holds no frame"), "{said}");
    let (code, _, said) = feed(&mut program(&folder, (31, 64)), Vec::new());
    assert!(code == Some(1) && said.contains("31x64") && said.contains("32 to 16384"), "{said}");
}

#[test]
fn the_program_ends_when_nobody_reads() {
    let folder = tempfile::tempdir().unwrap();
    let size = SIZES[0];
    let mut child = program(&folder, size).spawn().unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    // Kept open: the program must not wait for more.
    stdin.write_all(&interleaved(1, size)).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let _ = stdin.write_all(&interleaved(1, size));
    assert!(said.contains("nobody reads standard output"), "{said}");
    assert!(child.wait().unwrap().success());
}

#[cfg(unix)]
#[test]
fn the_program_reads_a_named_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let (size, pipe) = (SIZES[2], folder.path().join("ir"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let writer = {
        let pipe = pipe.clone();
        std::thread::spawn(move || {
            let bytes: Vec<u8> = (0..3).flat_map(|i| infrared(i, size)).collect();
            std::fs::write(pipe, bytes).unwrap();
        })
    };
    let all = (0..3).flat_map(|i| visible(i, size)).collect();
    let (code, fused, said) = feed(program(&folder, size).arg("--infrared").arg(&pipe), all);
    assert!(code == Some(0) && fused == expected(3, size, false), "{said}");
    writer.join().unwrap();
    let (code, _, said) = feed(program(&folder, size).args(["--infrared", "nowhere"]), Vec::new());
    assert!(code == Some(1) && said.contains("nowhere: cannot open"), "{said}");
}
