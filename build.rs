//! Compiles `kernels/*.cu` into fat binaries that the program carries, and writes the table that names them.
//!
//! Without nvcc there are no kernels, and the program computes on the CPU. The environment:
//! - `NVCC`: the compiler to use; `none` for no kernels. Otherwise it is looked for in `CUDA_HOME`, `CUDA_PATH`,
//!   `PATH`, `/usr/local/cuda` and `.cuda`, where `scripts/nvcc` puts it.
//! - `AMDANET_CUDA_ARCHS`: the architectures to make machine code for, `80,90a` if not set. PTX of the oldest is
//!   embedded too, for devices that are newer than all of them.
//! - `AMDANET_REQUIRE_NVCC=1`: no compiler is an error.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fmt::Write;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const DEFAULT_ARCHS: &str = "80,90a";

/// Where `scripts/nvcc` installs the compiler.
const LOCAL: &str = ".cuda/nvidia/cu13/bin/nvcc";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    for variable in [
        "NVCC",
        "NVCC_CCBIN",
        "CUDA_HOME",
        "CUDA_PATH",
        "AMDANET_CUDA_ARCHS",
        "AMDANET_REQUIRE_NVCC",
        "DOCS_RS",
    ] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let built = match find_nvcc() {
        Some(nvcc) => compile_all(&nvcc, &out),
        None => Ok(Built::default()),
    };
    match built.and_then(|built| write_table(&built, &out)) {
        Ok(()) => {}
        Err(why) => {
            eprintln!("{why}");
            std::process::exit(1);
        }
    }
}

/// What this build embeds.
#[derive(Default)]
struct Built {
    /// The release of the compiler, `13.0`; empty without one.
    release: String,
    archs: Vec<String>,
    files: Vec<File>,
}

/// A compiled file of kernels.
struct File {
    stem: String,
    fatbin: PathBuf,
    kernels: Vec<Kernel>,
}

/// What ptxas says of a kernel for one architecture.
#[derive(Default)]
struct Kernel {
    name: String,
    arch: String,
    registers: u32,
    /// Bytes of local memory, spills included.
    stack: u32,
    spill_stores: u32,
    spill_loads: u32,
}

fn find_nvcc() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|v| !v.is_empty());
    let required = set("AMDANET_REQUIRE_NVCC").is_some_and(|v| v != "0");
    if set("DOCS_RS").is_some() {
        return None;
    }
    if let Some(nvcc) = set("NVCC") {
        if nvcc == "none" && !required {
            return None;
        }
        return Some(nvcc.into());
    }
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = set(variable) {
            let nvcc = Path::new(&home).join("bin/nvcc");
            if nvcc.is_file() {
                return Some(nvcc);
            }
        }
    }
    println!("cargo:rerun-if-env-changed=PATH");
    let path = set("PATH").unwrap_or_default();
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let found = env::split_paths(&path)
        .map(|folder| folder.join("nvcc"))
        .chain([PathBuf::from("/usr/local/cuda/bin/nvcc"), root.join(LOCAL)])
        .find(|nvcc| nvcc.is_file());
    match &found {
        // A file that is not there would make cargo build anew each time; `scripts/nvcc` touches this file instead.
        Some(nvcc) => println!("cargo:rerun-if-changed={}", nvcc.display()),
        None if required => {
            eprintln!("nvcc was not found, and AMDANET_REQUIRE_NVCC is set: run scripts/nvcc");
            std::process::exit(1);
        }
        None => {
            println!("cargo:warning=no nvcc, so no CUDA kernels: for the CPU only (scripts/nvcc installs it)")
        }
    }
    found
}

fn compile_all(nvcc: &Path, out: &Path) -> Result<Built, String> {
    let release = release(nvcc)?;
    let compiler = env::var("NVCC_CCBIN").unwrap_or_else(|_| "g++".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        return Err(format!(
            "nvcc needs a C++ compiler, and there is no {compiler}: install g++, or build with NVCC=none"
        ));
    }
    let archs = archs()?;
    let flags = flags(&archs);
    let store = store(out);
    fs::create_dir_all(&store).map_err(|e| format!("{}: {e}", store.display()))?;
    let sources = files("kernels", "cu")?;
    // What every file depends on: the headers, the compiler, how it is called.
    let mut common = DefaultHasher::new();
    (nvcc, &release, &compiler, &flags).hash(&mut common);
    for header in files("kernels", "cuh")? {
        (&header, read(&header)?).hash(&mut common);
    }
    // One compiler for each processor, as long as there are files.
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from).min(sources.len()) {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let file = compile(nvcc, &flags, source, out, &store, common.clone());
                    done.lock().expect("no thread panics").push(file);
                }
            });
        }
    });
    let done = done.into_inner().expect("no thread panics");
    let mut files = done.into_iter().collect::<Result<Vec<_>, _>>()?;
    files.sort_by(|a, b| a.stem.cmp(&b.stem));
    Ok(Built { release, archs, files })
}

/// `13.0`, from the line `Cuda compilation tools, release 13.0, V13.0.88`.
fn release(nvcc: &Path) -> Result<String, String> {
    let output = Command::new(nvcc).arg("--version").output();
    let output = output.map_err(|e| format!("{}: cannot be run: {e}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let release = text.split_once("release ").and_then(|(_, rest)| rest.split(',').next());
    release.map(str::to_owned).ok_or_else(|| format!("{} --version: no release in {text:?}", nvcc.display()))
}

/// The architectures of `AMDANET_CUDA_ARCHS`, the oldest first.
fn archs() -> Result<Vec<String>, String> {
    let text = env::var("AMDANET_CUDA_ARCHS").ok().filter(|v| !v.trim().is_empty());
    let text = text.as_deref().unwrap_or(DEFAULT_ARCHS);
    let mut archs = Vec::new();
    for arch in text.split(',').map(str::trim) {
        let digits = arch.trim_end_matches(['a', 'f']);
        match digits.parse::<u32>() {
            Ok(number) if number >= 80 && arch.len() <= digits.len() + 1 => {
                archs.push((number, arch.to_owned()))
            }
            _ => {
                return Err(format!(
                    "AMDANET_CUDA_ARCHS={text}: {arch:?} is none; as in 80,86,89,90a,100a,120a"
                ));
            }
        }
    }
    archs.sort();
    archs.dedup();
    Ok(archs.into_iter().map(|(_, arch)| arch).collect())
}

fn flags(archs: &[String]) -> Vec<String> {
    let mut flags: Vec<String> =
        ["--fatbin", "-O3", "-std=c++17", "-lineinfo", "-Xptxas", "-v", "-I", "kernels"]
            .map(Into::into)
            .into();
    for (i, arch) in archs.iter().enumerate() {
        let ptx = if i == 0 { format!(",compute_{arch}") } else { String::new() };
        flags.push(format!("-gencode=arch=compute_{arch},code=[sm_{arch}{ptx}]"));
    }
    flags
}

/// The folder of compiled files that all profiles share: `kernels` in the target folder. `OUT_DIR` is below its
/// `PROFILE/build`.
fn store(out: &Path) -> PathBuf {
    let build = out.ancestors().find(|folder| folder.ends_with("build"));
    let target = build.and_then(|folder| folder.ancestors().nth(2));
    target.unwrap_or(out).join("kernels")
}

/// Compiles one file into the store, unless one made of the same text in the same way is there; copies it to `out`, so
/// that the store may be emptied between builds.
fn compile(
    nvcc: &Path,
    flags: &[String],
    source: &Path,
    out: &Path,
    store: &Path,
    mut key: DefaultHasher,
) -> Result<File, String> {
    let text = read(source)?;
    text.hash(&mut key);
    let key = format!("{:016x}", key.finish());
    let stem =
        source.file_stem().and_then(|s| s.to_str()).ok_or("a kernel's file has a strange name")?.to_owned();
    let made = |extension: &str| out.join(format!("{stem}.{extension}"));
    let stored = |extension: &str| store.join(format!("{stem}-{key}.{extension}"));
    let (fatbin, report) = (made("fatbin"), made("ptxas"));
    if !stored("fatbin").is_file() || !stored("ptxas").is_file() {
        let output = Command::new(nvcc).args(flags).arg("-o").arg(&fatbin).arg(source).output();
        let output = output.map_err(|e| format!("{}: cannot be run: {e}", nvcc.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let asked = flags.join(" ");
            return Err(format!(
                "{} {asked} {}: {}\n{said}",
                nvcc.display(),
                source.display(),
                output.status
            ));
        }
        write(&report, &said)?;
        // Moved, so that a file of the store is whole, whatever other builds do and wherever this one is cut off.
        for extension in ["ptxas", "fatbin"] {
            fs::rename(made(extension), stored(extension))
                .map_err(|e| format!("{}: {e}", stored(extension).display()))?;
        }
    }
    for extension in ["ptxas", "fatbin"] {
        fs::copy(stored(extension), made(extension))
            .map_err(|e| format!("{}: {e}", stored(extension).display()))?;
    }
    let kernels = parse_report(&String::from_utf8_lossy(&read(&report)?));
    Ok(File { stem, fatbin, kernels })
}

/// What `ptxas -v` says: for each kernel and architecture a line that names both, then its properties.
fn parse_report(report: &str) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut names = rest.split('\'');
            let name = names.next().unwrap_or_default().to_owned();
            let arch = names.nth(1).unwrap_or_default().to_owned();
            kernels.push(Kernel { name, arch, ..Kernel::default() });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        let before = |what: &str| -> u32 {
            let number =
                line.split_once(what).and_then(|(head, _)| head.split([' ', ',']).rfind(|s| !s.is_empty()));
            number.and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        // A function that was not inlined has properties of its own, which count for the kernel.
        kernel.stack = kernel.stack.max(before(" bytes stack frame"));
        kernel.spill_stores = kernel.spill_stores.max(before(" bytes spill stores"));
        kernel.spill_loads = kernel.spill_loads.max(before(" bytes spill loads"));
        kernel.registers = kernel.registers.max(before(" registers"));
    }
    kernels
}

/// Writes `kernels.rs`, which `src/cuda/kernels.rs` includes, and `ptxas.txt`, which `tests/kernels.rs` reads.
fn write_table(built: &Built, out: &Path) -> Result<(), String> {
    let mut report = String::new();
    let mut table = String::new();
    for file in &built.files {
        let mut names: Vec<&str> = file.kernels.iter().map(|k| k.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let image = file.fatbin.display().to_string();
        line(
            &mut table,
            format_args!("    ({:?}, &Image(*include_bytes!({image:?})).0, &{names:?}),", file.stem),
        );
        for k in &file.kernels {
            let Kernel { name, arch, registers, stack, spill_stores, spill_loads } = k;
            let numbers = format!("{registers} {stack} {spill_stores} {spill_loads}");
            line(&mut report, format_args!("{} {name} {arch} {numbers}", file.stem));
        }
    }
    let text = format!(
        "/// The release of the nvcc that made the kernels; empty when there was none.\n\
         pub static NVCC: &str = {:?};\n\
         /// The architectures that there is machine code for, the oldest first; PTX is of the oldest.\n\
         pub static ARCHS: &[&str] = &{:?};\n\
         /// Files of kernels: stem, fat binary, names.\n\
         pub static KERNELS: &[(&str, &[u8], &[&str])] = &[\n{table}];\n\
         /// A kernel and architecture on each line: file, kernel, architecture, registers, bytes of stack, of\n\
         /// spill stores, of spill loads.\n\
         pub static PTXAS: &str = {report:?};\n",
        built.release, built.archs
    );
    write(&out.join("ptxas.txt"), &report)?;
    write(&out.join("kernels.rs"), &text)
}

fn line(text: &mut String, line: std::fmt::Arguments) {
    writeln!(text, "{line}").expect("a string takes every line");
}

/// The files of a folder with this extension, in the order of their names.
fn files(folder: &str, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{folder}: {e}"))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
