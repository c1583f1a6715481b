//! The C interface: its header, its libraries, and the programs in C of `tests/ffi` that use them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use amdanet::checkpoint;
use amdanet::data::ClassSet;
use amdanet::infer::{Engine, Pairs, Pixels, Wanted};
use amdanet::model::Arch;

mod common;
#[path = "ffi/examples.rs"]
mod examples;

/// As in `tests/ffi/check.h`.
const WIDTH: usize = 48;
const HEIGHT: usize = 40;

const C: &[&str] =
    &["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-pedantic", "-g"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command that must succeed, on the CPU alone; what it wrote to standard output.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output =
        command.env("CUDA_VISIBLE_DEVICES", "").output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out
}

/// The library, installed below a folder, and what the programs read.
struct Installed {
    folder: PathBuf,
}

static INSTALLED: LazyLock<Installed> = LazyLock::new(|| {
    // In the target folder, because nothing would remove it at the end. Optimised, as users get it: valgrind takes its time.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ffi");
    let _ = fs::remove_dir_all(&folder);
    let mut install = Command::new(root().join("scripts/install"));
    install.env("DESTDIR", &folder).env("PREFIX", "/usr").env_remove("LIBDIR");
    run(&mut install);
    prepare(&folder.join("data"));
    Installed { folder }
});

impl Installed {
    fn library(&self) -> PathBuf {
        self.folder.join("usr/lib")
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// A compiled program of `tests/ffi`.
    fn program(&self, name: &str) -> PathBuf {
        let program = self.folder.join(name);
        let source = root().join(format!("tests/ffi/{name}.c"));
        let mut compile = Command::new("cc");
        compile.args(C).arg("-o").arg(&program).arg(source).args(self.flags()).arg("-lpthread");
        run(&mut compile);
        program
    }

    /// What pkg-config says, for the folder instead of the system; by hand where there is none.
    fn flags(&self) -> Vec<String> {
        let usr = self.folder.join("usr");
        let mut ask = Command::new("pkg-config");
        ask.args(["--define-variable"]).arg(format!("prefix={}", usr.display()));
        ask.arg("--define-variable").arg(format!("libdir={}", self.library().display()));
        ask.args(["--cflags", "--libs", "amdanet"]).env("PKG_CONFIG_PATH", self.library().join("pkgconfig"));
        let mut flags: Vec<String> = match ask.output() {
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
            }
            Err(_) => [
                format!("-I{}/include", usr.display()),
                format!("-L{}/lib", usr.display()),
                "-lamdanet".into(),
            ]
            .into(),
        };
        flags.push(format!("-Wl,-rpath,{}", self.library().display()));
        flags
    }
}

#[track_caller]
fn passes(name: &str) {
    let installed = &*INSTALLED;
    let said = run(Command::new(installed.program(name)).arg(installed.data()));
    assert_eq!(said, "", "the library wrote to standard output");
}

/// A network, a pair, and what the engine makes of it.
fn prepare(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let model = common::nano(Arch::Release, 5, 3);
    let weights = folder.join("network.safetensors");
    checkpoint::save(&weights, &model, &ClassSet::pst900()).unwrap();
    let mut damaged = fs::read(&weights).unwrap();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    fs::write(folder.join("damaged"), damaged).unwrap();
    let visible: Vec<u8> = (0..WIDTH * HEIGHT * 3).map(|i| (i * i / 7 % 256) as u8).collect();
    let infrared: Vec<u8> = (0..WIDTH * HEIGHT).map(|i| (i * 3 % 251) as u8).collect();
    let three: Vec<u8> = infrared.iter().flat_map(|&v| [v; 3]).collect();
    let mut session = Engine::new(&model).unwrap().session();
    let (visible_pixels, infrared_pixels) = (Pixels::Bytes(&visible), Pixels::Bytes(&three));
    let pairs =
        Pairs { batch: 1, height: HEIGHT, width: WIDTH, visible: visible_pixels, infrared: infrared_pixels };
    let wanted = Wanted { image: true, logits: false, probabilities: true };
    let output = session.run(&pairs, wanted).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).unwrap();
    write("visible", &visible);
    write("infrared", &infrared);
    write("fused", output.fused);
    write("labels", output.labels);
    write("image", bytemuck::cast_slice(output.image.unwrap()));
    write("probabilities", bytemuck::cast_slice(output.probabilities.unwrap()));
}

/// The header as cbindgen makes it now.
fn header() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    // In this order they come in the header.
    for file in ["version", "status", "device", "model", "frame", "session"] {
        builder = builder.with_src(root().join(format!("src/ffi/{file}.rs")));
    }
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

fn header_path() -> PathBuf {
    root().join("include/amdanet.h")
}

/// The functions that the header declares: their lines begin with their type, or go on with their name.
fn functions() -> Vec<String> {
    let text = fs::read_to_string(header_path()).unwrap();
    let is_code =
        |line: &&str| !line.trim_start().starts_with(['*', '/', '#']) && !line.starts_with("typedef");
    let mut names: Vec<String> = text
        .lines()
        .filter(is_code)
        .filter_map(|line| {
            let name = line.split_once('(')?.0.rsplit([' ', '*']).next()?;
            name.starts_with("amdanet_").then(|| name.to_owned())
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn the_header_is_what_the_code_says() {
    let made = header();
    if std::env::var_os("AMDANET_BLESS").is_some() {
        fs::write(header_path(), &made).unwrap();
    }
    let found = fs::read_to_string(header_path()).unwrap_or_default();
    assert!(found == made, "include/amdanet.h is stale: AMDANET_BLESS=1 cargo test --test ffi header");
}

#[test]
fn the_header_alone_compiles_as_c_and_as_cpp() {
    let folder = tempfile::tempdir().unwrap();
    for (compiler, language, standards) in
        [("cc", "c", ["c99", "c11", "c17"]), ("c++", "c++", ["c++11", "c++17", "c++20"])]
    {
        let source = folder.path().join(format!("header.{language}"));
        fs::write(&source, "#include <amdanet.h>\n#include <amdanet.h>\nint main(void) { return 0; }\n")
            .unwrap();
        for standard in standards {
            let mut compile = Command::new(compiler);
            compile.args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-fsyntax-only"]);
            compile.arg(format!("-std={standard}")).arg("-I").arg(root().join("include")).arg(&source);
            run(&mut compile);
        }
    }
}

#[test]
fn a_status_that_is_not_looked_at_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("ignored.c");
    fs::write(&source, "#include <amdanet.h>\nint main(void) { amdanet_session_run(0, 0); return 0; }\n")
        .unwrap();
    let mut compile = Command::new("cc");
    let output =
        compile.args(C).args(["-c", "-o", "/dev/null", "-I"]).arg(root().join("include")).arg(&source);
    let output = output.output().unwrap();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("unused-result"));
}

#[test]
fn the_programs_call_every_function() {
    let mut programs = String::new();
    for entry in fs::read_dir(root().join("tests/ffi")).unwrap() {
        programs += &fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    let functions = functions();
    assert!(functions.len() > 15, "{functions:?}");
    for function in functions {
        assert!(
            programs.contains(&format!("{function}(")),
            "{function} is called by no program of tests/ffi"
        );
    }
}

#[test]
fn the_libraries_are_as_a_distribution_wants_them() {
    let installed = &*INSTALLED;
    let shared = installed.library().join("libamdanet.so");
    let target = fs::canonicalize(&shared).unwrap();
    assert_eq!(
        target.file_name().unwrap().to_str(),
        Some(concat!("libamdanet.so.", env!("CARGO_PKG_VERSION")))
    );
    let dynamic = run(Command::new("readelf").arg("--dynamic").arg("--wide").arg(&shared));
    assert!(dynamic.contains("[libamdanet.so.0]"), "{dynamic}");
    let symbols = run(Command::new("nm").args(["--dynamic", "--defined-only"]).arg(&shared));
    let mut exported: Vec<_> = symbols
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        // The version is a symbol of its own.
        .filter(|name| *name != "AMDANET_0")
        .map(|name| name.strip_suffix("@@AMDANET_0").unwrap_or_else(|| panic!("{name} has no version")))
        .map(str::to_owned)
        .collect();
    exported.sort();
    assert_eq!(exported, functions());
    for file in
        ["libamdanet.a", "libamdanet.so.0", "pkgconfig/amdanet.pc", "cmake/amdanet/amdanet-config.cmake"]
    {
        assert!(installed.library().join(file).exists(), "{file}");
    }
    assert!(installed.folder.join("usr/include/amdanet.h").exists());
}

#[test]
fn the_archive_links_too() {
    let installed = &*INSTALLED;
    let package = fs::read_to_string(installed.library().join("pkgconfig/amdanet.pc")).unwrap();
    let private = package.lines().find_map(|line| line.strip_prefix("Libs.private:")).unwrap();
    let link = |name: &str, flags: &[&str]| {
        let program = installed.folder.join(name);
        let mut compile = Command::new("cc");
        compile.args(C).args(flags).arg("-o").arg(&program).arg(root().join("tests/ffi/old.c"));
        compile.arg("-I").arg(installed.folder.join("usr/include"));
        run(compile.arg(installed.library().join("libamdanet.a")).args(private.split_whitespace()));
        run(Command::new(&program).arg(installed.data()));
    };
    link("archive", &[]);
    // Not every distribution has an archive of its C library.
    if run(Command::new("cc").arg("-print-file-name=libc.a")).contains('/') {
        link("static", &["-static"]);
    }
}

/// `find_package(amdanet)` and both of its targets, where there is a CMake.
#[test]
fn cmake_finds_the_package() {
    if Command::new("cmake").arg("--version").output().is_err() {
        eprintln!("there is no cmake, so its package is not tried");
        return;
    }
    let installed = &*INSTALLED;
    let folder = installed.folder.join("cmake");
    fs::create_dir(&folder).unwrap();
    let project = |version: &str| {
        let source = root().join("tests/ffi/old.c");
        let text = format!(
            "cmake_minimum_required(VERSION 3.16)\nproject(caller C)\nfind_package(amdanet {version} REQUIRED)\n\
             foreach(kind amdanet static)\n    add_executable(${{kind}}-caller {})\n    \
             target_link_libraries(${{kind}}-caller amdanet::${{kind}})\nendforeach()\n",
            source.display()
        );
        fs::write(folder.join("CMakeLists.txt"), text).unwrap();
        let mut configure = Command::new("cmake");
        configure.args(["-S", ".", "-B", "build"]).current_dir(&folder);
        configure.arg(format!("-DCMAKE_PREFIX_PATH={}", installed.folder.join("usr").display()));
        configure
    };
    let refused = project("9").output().unwrap();
    assert!(!refused.status.success(), "a version that is not there was found");
    run(&mut project(env!("CARGO_PKG_VERSION")));
    run(Command::new("cmake").args(["--build", "build"]).current_dir(&folder));
    for kind in ["amdanet", "static"] {
        run(Command::new(folder.join(format!("build/{kind}-caller"))).arg(installed.data()));
    }
}

#[test]
fn results_are_the_engines_byte_for_byte() {
    passes("results");
}

#[test]
fn every_error_is_a_status_with_a_message() {
    passes("errors");
}

#[test]
fn sessions_in_threads() {
    passes("threads");
}

#[test]
fn programs_of_older_and_newer_headers() {
    passes("old");
}

#[test]
fn a_thousand_frames_leave_nothing_behind() {
    let installed = &*INSTALLED;
    let program = installed.program("frames");
    // 36 are more sizes than a session keeps plans for: after ten frames they have not all been met.
    for (sizes, from) in [("1", 0), ("36", 1)] {
        let said = run(Command::new(&program).arg(installed.data()).args(["1000", sizes]));
        let pages: Vec<i64> = said.lines().map(|line| line.parse().unwrap()).collect();
        // The C library's allocator settles within some pages; 64 of them are 262 bytes for each frame.
        assert!(pages.len() == 3 && pages[2] - pages[from] <= 64, "{sizes} sizes: {pages:?} pages of 4 KiB");
    }
}

#[test]
fn frames_lose_and_misuse_no_memory() {
    passes_checked("frames", &["100", "36"]);
}

#[test]
fn errors_lose_and_misuse_no_memory() {
    passes_checked("errors", &[]);
}

/// Under valgrind where there is one, else with the compiler's own checks of the program.
fn passes_checked(name: &str, more: &[&str]) {
    let installed = &*INSTALLED;
    let mut command = if Command::new("valgrind").arg("--version").output().is_ok() {
        let mut command = Command::new("valgrind");
        command.args(["--quiet", "--error-exitcode=9", "--num-callers=30"]);
        // Threads that all sessions share live as long as the process, and so does what they hold.
        command.args(["--leak-check=full", "--show-leak-kinds=definite"]);
        command.arg("--errors-for-leak-kinds=definite").arg(installed.program(name));
        command
    } else {
        let checked = installed.folder.join(format!("{name}-checked"));
        let mut compile = Command::new("cc");
        compile.args(C).arg("-fsanitize=address,undefined").arg("-o").arg(&checked);
        compile.arg(root().join(format!("tests/ffi/{name}.c"))).args(installed.flags());
        run(&mut compile);
        Command::new(checked)
    };
    run(command.arg(installed.data()).args(more));
}
