//! Compiles the kernels with the host's C++ compiler, each in two ways, and writes the tables of their names.
//!
//! A kernel's file becomes one object for `fast` and one for `checked`, kept for all profiles in `kernels` of the target
//! folder, under a name that holds a hash of everything the object depends on.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, thread};

const MODES: [&str; 2] = ["fast", "checked"];

/// What `__global__` is while the kernels' names are looked for.
const MARKER: &str = "emulated_global_marker";

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let include = here.join("include");
    let kernels = here.join("../../kernels").canonicalize().expect("kernels/ of the repository");
    let folders = [kernels.clone(), here.join("kernels")];
    let runtime = here.join("src/runtime.cpp");
    for watched in folders.iter().chain([&include, &runtime, &here.join("build.rs")]) {
        println!("cargo:rerun-if-changed={}", watched.display());
    }

    let mut sources: Vec<_> = folders.iter().flat_map(|folder| files(folder, &["cu"])).collect();
    sources.sort();
    let mut headers = DefaultHasher::new();
    for header in files(&kernels, &["cuh"]).iter().chain(&files(&include, &["h", "cuh"])) {
        read(header).hash(&mut headers);
    }
    read(&here.join("build.rs")).hash(&mut headers);

    let store =
        out.ancestors().find(|folder| folder.ends_with("build")).and_then(|build| build.ancestors().nth(2));
    let store = store.unwrap_or(&out).join("kernels");
    fs::create_dir_all(&store).expect("the target folder can be written");
    let compiler = Compiler { include, kernels, headers: headers.finish(), out: out.clone(), store };
    let tasks = sources.iter().flat_map(|source| MODES.map(|mode| (source.as_path(), mode))).collect();
    let mut build = build();
    build.include(&compiler.include).file(runtime);
    for object in in_parallel(tasks, |(source, mode)| compiler.object(source, mode)) {
        build.object(object);
    }
    build.compile("emulated_kernels");

    let tables: String = MODES.iter().map(|mode| table(mode, &sources)).collect();
    fs::write(out.join("tables.rs"), tables).expect("OUT_DIR can be written");
}

/// How C++ is compiled.
fn build() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(3).debug(false).warnings(false).pic(true);
    // Sums have one order and one rounding, whichever way the kernel is built.
    build.flag("-ffp-contract=off").flag("-fno-strict-aliasing").flag("-fwrapv");
    if cfg!(target_arch = "x86_64") && is_x86_64_v3() {
        build.flag("-march=x86-64-v3");
    }
    build
}

/// The function that lists the kernels of all files in one mode.
fn table(mode: &str, sources: &[PathBuf]) -> String {
    let names: Vec<_> = sources.iter().map(|source| format!("emulated_{mode}_{}", stem(source))).collect();
    let statics: String = names.iter().map(|name| format!("        static {name}: Entry;\n")).collect();
    let entries: String = names.iter().map(|name| format!("        &raw const {name},\n")).collect();
    format!(
        "fn {mode}() -> Vec<*const Entry> {{\n    unsafe extern \"C\" {{\n{statics}    }}\n    vec![\n{entries}    ]\n}}\n"
    )
}

struct Compiler {
    include: PathBuf,
    kernels: PathBuf,
    headers: u64,
    out: PathBuf,
    store: PathBuf,
}

impl Compiler {
    /// Compiles `source`, or finds what an earlier build has made of the same text.
    fn object(&self, source: &Path, mode: &str) -> PathBuf {
        let mut hash = DefaultHasher::new();
        let mut command = self.command(mode);
        (self.headers, read(source), command.get_program()).hash(&mut hash);
        command.get_args().for_each(|argument| argument.hash(&mut hash));
        let name = format!("{}.{mode}.{:016x}", stem(source), hash.finish());
        let object = self.store.join(format!("{name}.o"));
        if object.exists() {
            return object;
        }
        let made = |extension: &str| self.out.join(format!("{name}.{extension}"));
        let (wrapper, unfinished) = (made("cpp"), made("o"));
        fs::write(&wrapper, self.wrapper(source, mode)).expect("OUT_DIR can be written");
        command.arg("-c").arg(&wrapper).arg("-o").arg(&unfinished);
        run(&mut command, source);
        // Moved, so that a file of the store is whole, wherever a build is cut off.
        fs::rename(&unfinished, &object).expect("the target folder can be written");
        object
    }

    fn command(&self, mode: &str) -> Command {
        let compiler = build().get_compiler();
        let mut command = compiler.to_command();
        if mode == "checked" {
            // The compiler calls a function at each access to memory, and leaves the accesses as they are written.
            // Of the sanitizers this one names every access; the one for addresses skips a write after a read.
            command.args(["-DEMULATED_CHECKED", "-fsanitize=thread"]);
            command.args(["-fno-tree-vectorize", "-fno-tree-slp-vectorize"]);
            if compiler.is_like_clang() {
                command.args(["-mllvm", "-tsan-instrument-func-entry-exit=0"]);
                command.args(["-mllvm", "-tsan-instrument-read-before-write=1"]);
            } else {
                command.args(["--param", "tsan-instrument-func-entry-exit=0"]);
                command.args(["-fno-tree-sra", "-fno-tree-loop-distribute-patterns"]);
            }
        }
        command.arg("-DEMULATED").arg("-I").arg(&self.include).arg("-I").arg(&self.kernels);
        command
    }

    /// A file that includes `source` and lists its kernels. All of it has internal linkage but for the list, because
    /// two files may give different things the same name, and each file is there twice.
    fn wrapper(&self, source: &Path, mode: &str) -> String {
        let (stem, path) = (stem(source), source.display());
        let head = "#include <emulated.h>\n";
        let body = format!("namespace {{\n#include <cuda.h>\n#include \"{path}\"\n}}\n");
        let probe = self.out.join(format!("{stem}.{mode}.probe.cpp"));
        fs::write(&probe, head.to_string() + &body).expect("OUT_DIR can be written");
        let mut command = self.command(mode);
        command.arg("-E").arg("-P").arg(format!("-DEMULATED_GLOBAL={MARKER}")).arg(&probe);
        let text = run(&mut command, source);

        let names = kernel_names(&text);
        // An unnamed namespace does not give `extern "C"` functions internal linkage everywhere, so they are renamed;
        // their names may come out of macros, which a macro renames too.
        let renames = names.iter().map(|name| format!("#define {name} emulated_{mode}_kernel_{name}\n"));
        let entries = names.iter().map(|name| format!("    emulated_entry<{name}>(\"{name}\"),\n"));
        let (renames, entries): (String, String) = (renames.collect(), entries.collect());
        format!(
            "{head}{renames}{body}extern \"C\" {{ extern const EmulatedEntry emulated_{mode}_{stem}[]; }}\n\
             const EmulatedEntry emulated_{mode}_{stem}[] = {{\n{entries}    {{nullptr, nullptr, nullptr}},\n}};\n"
        )
    }
}

/// The names of the functions that are declared `extern "C" __global__`.
fn kernel_names(text: &str) -> Vec<&str> {
    let mut parts = text.split(MARKER);
    let mut before = parts.next().unwrap_or_default();
    let mut names = Vec::new();
    for part in parts {
        if before.trim_end().ends_with("extern \"C\"") {
            let declaration = part.split('(').next().unwrap_or_default().trim_end();
            let name = declaration.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next();
            let name = name.unwrap_or_default();
            // A kernel may be declared before it is defined.
            if !names.contains(&name) {
                names.push(name);
            }
        }
        before = part;
    }
    names
}

fn run(command: &mut Command, source: &Path) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the host's compiler refuses {}:\n{said}", source.display());
    for line in said.lines() {
        println!("cargo:warning={line}");
    }
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn in_parallel<T: Send, R: Send>(tasks: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let (tasks, results) = (Mutex::new(tasks.into_iter().enumerate()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let Some((index, task)) = tasks.lock().expect("no task panics here").next() else {
                        break;
                    };
                    let result = work(task);
                    results.lock().expect("no task panics here").push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("all tasks have ended");
    results.sort_by_key(|&(index, _)| index);
    results.into_iter().map(|(_, result)| result).collect()
}

fn is_x86_64_v3() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)));
    paths.sort();
    paths
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|stem| stem.to_str()).expect("kernels have plain names")
}
