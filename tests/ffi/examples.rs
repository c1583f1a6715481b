//! The programs of `examples/`: they make what the command line makes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{HEIGHT, INSTALLED, Installed, WIDTH, root, run};

/// Without what only tests need: users compile the examples with no more than this.
const WARNINGS: &[&str] = &["-Wall", "-Wextra", "-Werror", "-pedantic"];

/// The prepared pair as PPM, PGM and PNG, and what `amdanet run` makes of it.
struct Pair {
    folder: tempfile::TempDir,
    fused: Vec<u8>,
    labels: Vec<u8>,
}

impl Pair {
    fn new(installed: &Installed) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let [visible, infrared] =
            ["visible", "infrared"].map(|name| fs::read(installed.data().join(name)).unwrap());
        let (width, height) = (WIDTH as u32, HEIGHT as u32);
        let (rgb, gray) = (image::ColorType::Rgb8, image::ColorType::L8);
        image::save_buffer(path("vi.png"), &visible, width, height, rgb).unwrap();
        image::save_buffer(path("ir.png"), &infrared, width, height, gray).unwrap();
        fs::write(path("vi.ppm"), netpbm("P6", "# a comment\n", &visible)).unwrap();
        fs::write(path("ir.pgm"), netpbm("P5", "", &infrared)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_amdanet"));
        command.args(["run", "--save", "fused,labels", "--weights"]).arg(weights(installed));
        command.arg("--visible").arg(path("vi.png")).arg("--infrared").arg(path("ir.png"));
        run(command.arg("--out").arg(path("out")));
        let made = |kind: &str| image::open(path("out").join(kind).join("vi.png")).unwrap();
        let (fused, labels) = (made("fused").into_rgb8().into_raw(), made("labels").into_luma8().into_raw());
        Self { folder, fused, labels }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn weights(installed: &Installed) -> PathBuf {
    installed.data().join("network.safetensors")
}

fn netpbm(kind: &str, comment: &str, pixels: &[u8]) -> Vec<u8> {
    [format!("{kind}\n{comment}{WIDTH} {HEIGHT}\n255\n").as_bytes(), pixels].concat()
}

/// A compiled example.
fn compiled(installed: &Installed, compiler: &str, standard: &str, source: &str) -> PathBuf {
    let program = installed.folder.join(source.replace('/', "-"));
    let mut compile = Command::new(compiler);
    compile.arg(format!("-std={standard}")).args(WARNINGS).arg("-o").arg(&program);
    run(compile.arg(root().join("examples").join(source)).args(installed.flags()).arg("-lpthread"));
    program
}

/// Runs `command` with arguments of `fuse`, on a pair and on mistakes.
#[track_caller]
fn fuses(installed: &Installed, command: impl Fn() -> Command) {
    let pair = Pair::new(installed);
    let path = |name: &str| pair.path(name);
    let fuse = |weights: &Path, visible: &str, infrared: &str, fused: &str| {
        let mut command = command();
        command.arg(weights).args([path(visible), path(infrared), path(fused), path("labels.pgm")]);
        command.output().unwrap()
    };
    let weights = weights(installed);

    let output = fuse(&weights, "vi.ppm", "ir.pgm", "fused.ppm");
    assert!(output.status.success(), "{}", said(&output));
    assert!(fs::read(path("fused.ppm")).unwrap() == netpbm("P6", "", &pair.fused), "fused");
    assert!(fs::read(path("labels.pgm")).unwrap() == netpbm("P5", "", &pair.labels), "labels");

    fs::write(path("cut.pgm"), &fs::read(path("ir.pgm")).unwrap()[..1000]).unwrap();
    fs::write(path("small.pgm"), [b"P5 32 32 255\n", &[0; 32 * 32][..]].concat()).unwrap();
    let damaged = installed.data().join("damaged");
    fails(&fuse(&path("absent.safetensors"), "vi.ppm", "ir.pgm", "fused.ppm"), "absent.safetensors");
    fails(&fuse(&damaged, "vi.ppm", "ir.pgm", "fused.ppm"), "damaged");
    fails(&fuse(&weights, "absent.ppm", "ir.pgm", "fused.ppm"), "absent.ppm");
    fails(&fuse(&weights, "ir.pgm", "ir.pgm", "fused.ppm"), "must be a binary PPM");
    fails(&fuse(&weights, "vi.ppm", "cut.pgm", "fused.ppm"), "ends before its last pixel");
    fails(&fuse(&weights, "vi.ppm", "small.pgm", "fused.ppm"), "of one size");
    fails(&fuse(&weights, "vi.ppm", "ir.pgm", "absent/fused.ppm"), "absent/fused.ppm");
    fails(&command().output().unwrap(), "usage");
}

/// One line that says `words`, and the exit code of mistakes.
#[track_caller]
fn fails(output: &Output, words: &str) {
    let said = said(output);
    assert!(
        output.status.code() == Some(1) && said.lines().count() == 1 && said.contains(words),
        "{words}: {said}"
    );
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn fuse_in_c() {
    let installed = &*INSTALLED;
    let program = compiled(installed, "cc", "c99", "c/fuse.c");
    fuses(installed, || Command::new(&program));
}

#[test]
fn fuse_in_cpp() {
    let installed = &*INSTALLED;
    let program = compiled(installed, "c++", "c++17", "cpp/fuse.cpp");
    fuses(installed, || Command::new(&program));
}

#[test]
fn pipeline_in_c() {
    let installed = &*INSTALLED;
    let program = compiled(installed, "cc", "c99", "c/pipeline.c");
    let folder = tempfile::tempdir().unwrap();
    let frames = folder.path().join("frames");
    let (width, height) = (WIDTH.to_string(), HEIGHT.to_string());
    // More frames than the pipeline has slots.
    let bytes: Vec<u8> = (0..11 * 4 * WIDTH * HEIGHT).map(|i| (i * i / 5 + i / 4093) as u8).collect();
    let pipeline = |weights: &Path, length: usize| {
        fs::write(&frames, &bytes[..length]).unwrap();
        let mut command = Command::new(&program);
        command.arg(weights).args([&width, &height]).stdin(File::open(&frames).unwrap()).output().unwrap()
    };
    let weights = weights(installed);
    let whole = pipeline(&weights, bytes.len());
    assert!(whole.status.success(), "{}", said(&whole));
    let mut stream = Command::new(env!("CARGO_BIN_EXE_amdanet"));
    stream.args(["stream", "--width", &width, "--height", &height, "--weights"]).arg(&weights);
    let stream = stream.stdin(File::open(&frames).unwrap()).output().unwrap();
    assert!(stream.status.success() && stream.stdout == whole.stdout, "{}", said(&stream));
    assert_eq!(whole.stdout.len(), 11 * 3 * WIDTH * HEIGHT);

    let cut = pipeline(&weights, bytes.len() - 1);
    fails(&cut, "ends within a pair");
    assert!(cut.stdout == whole.stdout[..10 * 3 * WIDTH * HEIGHT], "the complete frames come first");
    fails(&pipeline(&weights, 0), "has no frame");
    fails(&pipeline(Path::new("absent.safetensors"), 0), "absent.safetensors");
}

/// With `AMDANET_PYTHON`, or the `python3` of the path, if it has NumPy.
#[test]
fn fuse_and_arrays_in_python() {
    let python = std::env::var_os("AMDANET_PYTHON").unwrap_or_else(|| "python3".into());
    if !Command::new(&python)
        .args(["-c", "import numpy"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        println!("not tested: {} has no NumPy; AMDANET_PYTHON names another", python.display());
        return;
    }
    let installed = &*INSTALLED;
    let script = |path: &str| {
        let mut command = Command::new(&python);
        command.arg("-B").arg(root().join(path)).env("PYTHONPATH", root().join("examples/python"));
        command.env("AMDANET_LIBRARY", installed.library().join("libamdanet.so.0"));
        command
    };
    fuses(installed, || script("examples/python/fuse.py"));
    run(script("tests/ffi/arrays.py").arg(installed.data()));
}
