//! Checkpoints: every container, and files that mean harm.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use amdanet::checkpoint::{self, Array, Kind, Meta, State, detect, fit, kind};
use amdanet::model::{Arch, Encoder, ModelConfig};

const SAMPLES: [&str; 3] = ["sample.pth", "sample_legacy.pth", "sample_protocol4.pth"];

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(name)
}

/// The folder of the large sample files, for those who have them.
fn golden(name: &str) -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("AMDANET_GOLDENS")?).join("checkpoints").join(name))
}

/// Reads bytes as a file; an error must be one line that starts with the file.
fn read(bytes: &[u8]) -> Result<(State, Option<Meta>), String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    checkpoint::read(file.path()).map_err(|e| {
        let message = e.to_string();
        assert!(message.starts_with(&file.path().display().to_string()), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.len() < 1000, "{message}");
        message
    })
}

#[track_caller]
fn refused(bytes: &[u8], because: &str) {
    let message = read(bytes).unwrap_err();
    assert!(message.contains(because), "expected {because:?} in: {message}");
}

fn array(shape: &[usize], data: &[f32]) -> Array {
    Array { shape: shape.to_vec(), data: data.to_vec() }
}

fn state(tensors: &[(&str, Array)]) -> State {
    tensors.iter().map(|(name, array)| ((*name).to_owned(), array.clone())).collect()
}

fn expected_sample() -> State {
    state(&[
        ("backbone.LEs.0.gate.0.weight", array(&[2, 3], &[0., 1., 2., 3., 4., 5.])),
        ("backbone.sci_1.lambda_param", array(&[], &[0.5])),
        ("aux_head.half", array(&[2, 2], &[10., 11., 12., 13.])),
        ("aux_head.brain", array(&[3], &[20., 21., 22.])),
        ("aux_head.double", array(&[2], &[30., 31.])),
        ("aux_head.transposed", array(&[2, 3], &[0., 2., 4., 1., 3., 5.])),
        ("aux_head.inner", array(&[2, 2], &[5., 6., 9., 10.])),
        ("aux_head.shared", array(&[4], &[40., 41., 42., 43.])),
        ("aux_head.tied", array(&[2], &[42., 43.])),
        ("aux_head.empty", array(&[0, 3], &[])),
    ])
}

fn meta() -> Meta {
    let mut meta = Meta::new(ModelConfig::new(Encoder::Nano, Arch::Paper, 2));
    meta.class_names = vec!["road".into(), "Fußgänger \"x\"".into()];
    meta.palette = vec![[0, 0, 0], [255, 128, 1]];
    meta.extra.insert("step".into(), "12".into());
    meta
}

/// A safetensors file with this header and data.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// A legacy container around a pickle, with storages by key.
fn legacy(pickle: &[u8], storages: &[(&str, Vec<u8>, u64)]) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    file.extend(b"\x80\x02}");
    file.extend(text("little_endian"));
    file.extend(b"\x88s.\x80\x02");
    file.extend(pickle);
    file.extend(b".\x80\x02](");
    storages.iter().for_each(|(key, ..)| file.extend(text(key)));
    file.extend(b"e.");
    for (_, data, count) in storages {
        file.extend(count.to_le_bytes());
        file.extend(data);
    }
    file
}

fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn long(n: i128) -> Vec<u8> {
    [b"\x8a\x10".as_slice(), &n.to_le_bytes()].concat()
}

/// Instructions that make a tensor over storage `k`.
fn tensor(count: i128, offset: i128, shape: &[i128], strides: &[i128]) -> Vec<u8> {
    let tuple = |sizes: &[i128]| {
        [b"(".to_vec(), sizes.iter().flat_map(|&n| long(n)).collect(), b"t".to_vec()].concat()
    };
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("k"),
        text("cpu"),
        long(count),
        b"NtQ".to_vec(),
        long(offset),
        tuple(shape),
        tuple(strides),
        b"\x89}tR".to_vec(),
    ]
    .concat()
}

/// `{NAME: tensor, …}` for a name that only AMDANet has.
fn dict(tensors: &[Vec<u8>]) -> Vec<u8> {
    let mut pickle = b"}(".to_vec();
    for (i, tensor) in tensors.iter().enumerate() {
        pickle.extend(text(&format!("aux_head.{i}")));
        pickle.extend(tensor);
    }
    pickle.extend(b"u");
    pickle
}

fn storage(count: u64) -> (&'static str, Vec<u8>, u64) {
    ("k", (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect(), count)
}

#[test]
fn reads_what_pytorch_writes() {
    for name in SAMPLES {
        let (found, meta) = checkpoint::read(sample(name)).unwrap();
        assert_eq!((found, meta), (expected_sample(), None), "{name}");
    }
}

#[test]
fn reads_hand_made_tensors() {
    let pickle = dict(&[tensor(6, 1, &[2, 2], &[1, 2]), tensor(6, 5, &[1, 1], &[1 << 60, 1 << 60])]);
    let (found, _) = read(&legacy(&pickle, &[storage(6)])).unwrap();
    assert_eq!(found["aux_head.0"], array(&[2, 2], &[1., 3., 2., 4.]));
    assert_eq!(found["aux_head.1"], array(&[1, 1], &[5.]));
}

#[test]
fn own_files_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.anything");
    let mut weights = expected_sample();
    weights.insert("step.of.an.optimizer".into(), array(&[1], &[f32::MIN_POSITIVE]));
    checkpoint::write(&path, &weights, &meta()).unwrap();
    let first = fs::read(&path).unwrap();
    assert_eq!(checkpoint::read(&path).unwrap(), (weights.clone(), Some(meta())));
    checkpoint::write(&path, &weights, &meta()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), first);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file is left");
    assert_eq!(first[0] % 8, 0, "the data is not aligned");
    let crate_reads = safetensors::SafeTensors::deserialize(&first).unwrap();
    assert_eq!(crate_reads.tensor("aux_head.brain").unwrap().shape(), [3]);

    let error = checkpoint::write(folder.path().join("no/such/folder"), &weights, &meta()).unwrap_err();
    assert!(error.to_string().contains("cannot write"), "{error}");
    let wrong = state(&[("a", array(&[2], &[1.]))]);
    assert!(checkpoint::write(&path, &wrong, &meta()).is_err());
    let mut three = meta();
    three.class_names.push("third".into());
    let error = checkpoint::write(&path, &weights, &three).unwrap_err().to_string();
    assert!(error.contains("3 class names for 2 classes"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), first, "a refused write touched the file");
}

#[test]
fn no_flipped_bit_of_an_own_file_goes_unnoticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let weights = expected_sample();
    checkpoint::write(&path, &weights, &meta()).unwrap();
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        // A file that no longer claims to be this program's, or to have a checksum, holds the same weights.
        if let Ok((found, _)) = read(&bytes) {
            assert!(found == weights, "byte {at}: \"{}\"", bytes.escape_ascii());
        }
    }
    let data = good.len() - 4 * weights.values().map(|array| array.data.len()).sum::<usize>();
    for at in data..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        refused(&bytes, "checksum");
    }
}

#[test]
fn metadata_is_held_to_its_word() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    checkpoint::write(&path, &expected_sample(), &meta()).unwrap();
    let text = fs::read(&path).unwrap();
    let swap = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = text.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = text.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    refused(&swap("\"format_version\":\"1\"", "\"format_version\":\"2\""), "format version \"2\"");
    refused(&swap("\"classes\":\"2\"", "\"classes\":\"3\""), "\"classes\"");
    refused(&swap("\"arch\":\"paper\"", "\"arch\":\"xxxxx\""), "\"arch\"");
    refused(&swap("\\\"classes\\\":2", "\\\"classes\\\":0"), "classes");
    refused(&swap("\\\"tau\\\"", "\\\"tow\\\""), "\"model\"");
    refused(&swap("\"bn_eps\"", "\"bn_esp\""), "lacks \"bn_eps\"");
}

#[test]
fn a_cut_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("w.safetensors");
    checkpoint::write(&own, &expected_sample(), &meta()).unwrap();
    for path in SAMPLES.map(sample).into_iter().chain([own]) {
        let bytes = fs::read(&path).unwrap();
        for n in (0..bytes.len()).step_by(97).chain([1, 8, 9, bytes.len() - 1]) {
            assert!(read(&bytes[..n]).is_err(), "{} cut to {n} of {}", path.display(), bytes.len());
        }
    }
}

#[test]
fn bad_safetensors_are_refused() {
    let one =
        |offsets: &str| format!(r#"{{"aux_head.a":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#);
    let good = safetensors(&one("[0,8]"), &[0; 8]);
    assert_eq!(read(&good).unwrap().0["aux_head.a"], array(&[2], &[0., 0.]));
    for length in [1 << 63, u64::MAX, u64::MAX - 7, 1 << 40, 1000, 0] {
        let mut bytes = good.clone();
        bytes[..8].copy_from_slice(&u64::to_le_bytes(length));
        assert!(read(&bytes).is_err(), "{length}");
    }
    refused(&safetensors(&one("[0,16]"), &[0; 8]), "header");
    refused(&safetensors(&one("[8,16]"), &[0; 16]), "header");
    refused(&safetensors(&one("[8,0]"), &[0; 8]), "header");
    refused(&safetensors(&one("[0,8]"), &[0; 9]), "declares 8 bytes");
    refused(&safetensors(&one("[18446744073709551608,0]"), &[0; 8]), "header");
    refused(&safetensors(&one("[0,-8]"), &[0; 8]), "header");
    let two = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    refused(&safetensors(two, &[0; 12]), "header");
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}}"#;
    refused(&safetensors(huge, &[0; 8]), "header");
    let ints = r#"{"aux_head.a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#;
    refused(&safetensors(ints, &[0; 8]), "tensor aux_head.a holds I64");
    let counter = r#"{"aux_head.a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b.num_batches_tracked":{"dtype":"I64","shape":[],"data_offsets":[4,12]}}"#;
    assert_eq!(read(&safetensors(counter, &[0; 12])).unwrap().0.len(), 1);
    refused(&safetensors(&format!("{{\"a\":{}", "[".repeat(1 << 20)), &[]), "header");
    refused(&safetensors(&one("[1,8]").replace("head.a", "head.a\\n"), &[0; 8]), "head.a\\n");
    refused(&safetensors(&one("[0,8]").replace("aux_head.a", &"x".repeat(10_000)), &[0; 8]), "xxx…");
    refused(&safetensors("{}", &[]), "holds 0 tensors");
    refused(b"<!DOCTYPE html>\n<html>", "starts with \"<!DOCTYPE html>\\n\"");
    refused(b"", "neither");
}

#[test]
fn code_is_never_run() {
    let marker = tempfile::tempdir().unwrap().path().join("ran");
    let call = format!("cos\nsystem\n(S'touch {}'\ntR", marker.display());
    for (pickle, because) in [
        (call.as_bytes(), "os.system"),
        (b"\x8c\x02os\x8c\x06system\x93", "os.system"),
        (b"cbuiltins\neval\n", "builtins.eval"),
        (b"ctorch.serialization\nload\n", "torch.serialization.load"),
        (b"c__builtin__\ngetattr\n", "__builtin__.getattr"),
        (b"ccollections\nOrderedDict\n)\x81", "opcode 0x81"),
        (b"(ios\nsystem\n", "opcode 0x69"),
        (b"\x82\x01", "opcode 0x82"),
        (b"ctorch\nSize\n}b", "state of a Python object"),
        (b"cnumpy.core.multiarray\nscalar\n", "numpy.core.multiarray.scalar"),
        (b"c\x1b[2J\nx\n", "\\u{1b}[2J.x"),
    ] {
        refused(&legacy(pickle, &[]), because);
    }
    assert!(!marker.exists());
}

#[test]
fn dishonest_tensors_are_refused() {
    let file = |tensors: &[Vec<u8>]| legacy(&dict(tensors), &[storage(6)]);
    let one = |offset, shape: &[i128], strides: &[i128]| file(&[tensor(6, offset, shape, strides)]);
    assert!(read(&one(0, &[2, 3], &[3, 1])).is_ok());
    for (offset, shape, strides) in [
        (1, vec![2, 3], vec![3, 1]),
        (0, vec![2, 4], vec![3, 1]),
        (0, vec![1 << 40], vec![0]),
        (0, vec![7], vec![0]),
        (0, vec![2], vec![1 << 62]),
        (0, vec![2], vec![(1 << 64) - 1]),
        (0, vec![3], vec![-1]),
        (0, vec![-3], vec![1]),
        (-1, vec![3], vec![1]),
        (1 << 70, vec![3], vec![1]),
        ((1 << 64) - 1, vec![3], vec![1]),
        (0, vec![1 << 33, 1 << 33], vec![0, 0]),
        (0, vec![2, 3], vec![1]),
        (0, vec![1; 9], vec![1; 9]),
    ] {
        let message = read(&one(offset, &shape, &strides)).unwrap_err();
        assert!(!message.contains("holds"), "{message}");
    }
    refused(&one(0, &[7], &[0]), "tensor aux_head.0: shape [7]");
    let many = dict(&vec![tensor(1000, 0, &[1000], &[1]); 2000]);
    refused(&legacy(&many, &[storage(1000)]), "more elements than the file has bytes");
    // A few that share are tied weights.
    assert!(read(&legacy(&dict(&vec![tensor(1000, 0, &[1000], &[1]); 3]), &[storage(1000)])).is_ok());
}

#[test]
fn dishonest_storages_are_refused() {
    let pickle = |count| dict(&[tensor(count, 0, &[1], &[1])]);
    let bytes = vec![0; 24];
    refused(&legacy(&pickle(1 << 40), &[("k", bytes.clone(), 1 << 40)]), "does not bear out");
    refused(&legacy(&pickle(1 << 62), &[("k", bytes.clone(), 1 << 62)]), "does not bear out");
    refused(&legacy(&pickle(6), &[("k", bytes.clone(), 7)]), "does not bear out");
    refused(&legacy(&pickle(-1), &[("k", bytes.clone(), 6)]), "storage of -1 elements");
    refused(&legacy(&pickle(6), &[("other", bytes.clone(), 6)]), "no tensor uses");
    refused(&legacy(&pickle(6), &[]), "is missing");
    refused(
        &legacy(&dict(&[tensor(6, 0, &[1], &[1]), tensor(5, 0, &[1], &[1])]), &[("k", bytes, 6)]),
        "two types",
    );
}

#[test]
fn twisted_pickles_are_refused() {
    let nested = [b"(".repeat(1 << 20), b"t".repeat(1 << 20)].concat();
    refused(&legacy(&nested, &[]), "no state dict");
    let own_child = b"]\x94h\x00a";
    refused(&legacy(own_child, &[]), "no state dict");
    let copies = [
        b"ccollections\nOrderedDict\nq\x01](".to_vec(),
        b"K\x01K\x02\x86".repeat(10_000),
        b"e\x85q\x02".to_vec(),
        b"h\x01h\x02R".repeat(10_000),
    ];
    refused(&legacy(&copies.concat(), &[]), "copies more than it holds");
    for pickle in [
        &b"t"[..],
        b"(e",
        b"a",
        b"K\x01K\x02a",
        b"}K\x01s",
        b"}(K\x01u",
        b"h\x07",
        b"R",
        b"Q",
        b"(0",
        b"\x93",
        b"",
    ] {
        assert!(read(&legacy(pickle, &[])).is_err(), "{pickle:?}");
    }
    refused(&legacy(b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f", &[]), "ends early");
    refused(&legacy(b"X\xff\xff\xff\xff", &[]), "ends early");
    refused(&legacy(&b"N".repeat(5 << 20), &[]), "exceeds");
    refused(b"\x80\x02K\x01.\x80\x02K\x01.", "not one that torch.save wrote");
}

/// A zip archive of stored entries.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, data) in entries {
        archive.start_file(*name, options).unwrap();
        archive.write_all(data).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[test]
fn zip_archives_are_checked() {
    let pickle = [b"\x80\x02".to_vec(), dict(&[tensor(6, 0, &[2, 3], &[3, 1])]), b".".to_vec()].concat();
    let (_, data, _) = storage(6);
    let good =
        zip(&[("any name/data.pkl", &pickle), ("any name/data/k", &data), ("any name/byteorder", b"little")]);
    assert_eq!(read(&good).unwrap().0["aux_head.0"], array(&[2, 3], &[0., 1., 2., 3., 4., 5.]));
    refused(&zip(&[("a/data.pkl", &pickle), ("a/data/k", &data), ("a/byteorder", b"big")]), "little-endian");
    refused(&zip(&[("a/data.pkl", &pickle), ("b/data/k", &data)]), "storage k is missing");
    refused(&zip(&[("a/data.pkl", &pickle), ("a/data/k", &data[1..])]), "declares 6 elements and has 5");
    refused(&zip(&[("a/data.pkl", &pickle), ("b/data.pkl", &pickle)]), "exactly one data.pkl");
    refused(&zip(&[("a/b", b"")]), "exactly one data.pkl");
    let mut compressed = good;
    let directory = compressed.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    compressed[directory + 10] = 8;
    refused(&compressed, "compressed");
}

#[test]
fn flipped_bytes_never_panic() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 16) as usize % below
    };
    let mut survived = 0;
    for path in SAMPLES.map(sample) {
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << random(8);
            survived += u32::from(read(&changed).is_ok());
            changed[at] = [0, 0x7f, 0x80, 0xff, b'(', b'.', b'R', b'h'][random(8)];
            survived += u32::from(read(&changed).is_ok());
        }
        for _ in 0..3000 {
            let mut changed = bytes.clone();
            for _ in 0..1 + random(6) {
                let at = random(changed.len());
                match random(3) {
                    0 => changed[at] = random(256) as u8,
                    1 => drop(changed.drain(at..(at + 1 + random(8)).min(changed.len()))),
                    _ => changed.insert(at, random(256) as u8),
                }
            }
            survived += u32::from(read(&changed).is_ok());
        }
    }
    assert!(survived > 0);
}

#[test]
fn state_dicts_are_found_and_renamed() {
    let whole = |prefix: &str| {
        let mut pickle = b"}".to_vec();
        pickle.extend(text(&format!("{prefix}aux_head.0")));
        pickle.extend(tensor(6, 0, &[6], &[1]));
        pickle.push(b's');
        pickle
    };
    let expected = state(&[("aux_head.0", array(&[6], &[0., 1., 2., 3., 4., 5.]))]);
    for prefix in ["", "module."] {
        for key in [None, Some("model"), Some("state_dict")] {
            let pickle = match key {
                None => whole(prefix),
                Some(key) => [b"}".to_vec(), text(key), whole(prefix), b"s".to_vec()].concat(),
            };
            assert_eq!(read(&legacy(&pickle, &[storage(6)])).unwrap().0, expected, "{prefix:?} {key:?}");
        }
    }
    let other = [b"}".to_vec(), text("net"), whole(""), b"s".to_vec()].concat();
    refused(&legacy(&other, &[storage(6)]), "no state dict at its top");
}

fn encoder_names(names: &[(&str, f32)]) -> Result<State, String> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, value) in names {
        let at = data.len();
        data.extend(value.to_le_bytes());
        header.insert(
            (*name).into(),
            serde_json::json!({"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]}),
        );
    }
    read(&safetensors(&serde_json::to_string(&header).unwrap(), &data)).map(|(state, _)| state)
}

#[test]
fn encoders_go_into_both_streams() {
    let one = |name: &str, value: f32| (name.to_owned(), array(&[1], &[value]));
    let segformer = encoder_names(&[
        ("backbone.patch_embed1.proj.bias", 1.),
        ("backbone.norm4.weight", 2.),
        ("backbone.block3.11.attn.q.bias", 3.),
        ("head.weight", 4.),
        ("decode_head.linear_pred.bias", 5.),
    ])
    .unwrap();
    let expected = [
        one("backbone.patch_embed1.proj.bias", 1.),
        one("backbone.extra_patch_embed1.proj.bias", 1.),
        one("backbone.norm4.weight", 2.),
        one("backbone.extra_norm4.weight", 2.),
        one("backbone.block3.11.attn.q.bias", 3.),
        one("backbone.extra_block3.11.attn.q.bias", 3.),
    ];
    assert_eq!(segformer, State::from(expected));
    assert_eq!(kind(&segformer), Kind::Encoder);

    let names = [
        ("segformer.encoder.patch_embeddings.0.layer_norm.weight", 1.),
        ("segformer.encoder.block.2.11.attention.self.value.bias", 3.),
        ("segformer.encoder.block.2.11.attention.self.key.bias", 2.),
        ("classifier.weight", 9.),
    ];
    let transformers = encoder_names(&names).unwrap();
    assert_eq!(transformers["backbone.extra_block3.11.attn.kv.bias"], array(&[2], &[2., 3.]));
    assert_eq!(transformers["backbone.patch_embed1.norm.weight"], array(&[1], &[1.]));
    assert_eq!(transformers.len(), 4);
    let half = encoder_names(&names[..2]).unwrap_err();
    assert!(half.contains("only one of key and value for block3.11.attn.kv.bias"), "{half}");
    let foreign =
        encoder_names(&[names[0], ("segformer.encoder.block.4.0.layer_norm_1.weight", 0.)]).unwrap_err();
    assert!(foreign.contains("block.4.0"), "{foreign}");
    assert!(encoder_names(&[("conv1.weight", 0.)]).unwrap_err().contains("neither an AMDANet"));
    assert!(
        encoder_names(&[("aux_head.a", 0.), ("module.aux_head.a", 0.)])
            .unwrap_err()
            .contains("with and without")
    );
}

/// What [`detect`] reads, for a network of these numbers.
fn telling(config: &ModelConfig) -> State {
    let zeros = |shape: &[usize]| Array { shape: shape.to_vec(), data: vec![0.; shape.iter().product()] };
    let mut state = State::new();
    for i in 0..4 {
        let (dim, sr) = (config.dims[i], config.sr[i]);
        state.insert(format!("backbone.patch_embed{}.proj.weight", i + 1), zeros(&[dim, 3, 1, 1]));
        for j in 0..config.depths[i] {
            let block = format!("backbone.block{}.{j}.", i + 1);
            state.insert(format!("{block}norm1.bias"), zeros(&[dim]));
            if sr > 1 {
                state.insert(format!("{block}attn.sr.weight"), zeros(&[1, 1, sr, sr]));
            }
            state.insert(format!("{block}mlp.fc1.weight"), zeros(&[dim * config.mlp_ratio, dim]));
        }
    }
    state.insert("decode_head.linear_pred.weight".into(), zeros(&[config.classes, config.decoder_dim, 1, 1]));
    state.insert("aux_head.CNN_fuse.0.weight".into(), zeros(&[config.fusion_dim, 1, 3, 3]));
    if config.arch == Arch::Release {
        state.insert("backbone.LEs.0.gate.0.weight".into(), zeros(&[1, 1]));
    }
    let kernel = if config.arch == Arch::Release { [16, 4, 1, 1] } else { [2, 4, 7, 7] };
    state.insert("backbone.LEs.0.fuse_sc.sap.mlp.0.weight".into(), zeros(&kernel));
    state
}

#[test]
fn networks_are_recognised() {
    for arch in [Arch::Release, Arch::Paper] {
        for encoder in Encoder::ALL {
            let mut config = ModelConfig::new(encoder, arch, 15);
            config.decoder_dim = 48;
            config.fusion_dim = 24;
            let found = detect(&telling(&config)).unwrap();
            assert_eq!(found, config);
            assert_eq!(found.encoder(), Some(encoder));
        }
    }
    let whole = telling(&ModelConfig::new(Encoder::B0, Arch::Paper, 5));
    let refused = |change: &dyn Fn(&mut State), because: &str| {
        let mut state = whole.clone();
        change(&mut state);
        let message = detect(&state).unwrap_err().to_string();
        assert!(
            message.contains(because) && message.lines().count() == 1,
            "expected {because:?} in: {message}"
        );
    };
    refused(&|s| s.clear(), "backbone.patch_embed1.proj.weight is missing");
    refused(
        &|s| drop(s.remove("decode_head.linear_pred.weight")),
        "decode_head.linear_pred.weight is missing",
    );
    refused(
        &|s| s.get_mut("backbone.patch_embed2.proj.weight").unwrap().shape = vec![48, 3, 1, 1],
        "nano [16, 32",
    );
    refused(&|s| s.get_mut("backbone.patch_embed2.proj.weight").unwrap().shape = vec![48], "4 dimensions");
    refused(&|s| s.retain(|name, _| !name.contains("block3")), "backbone.block3.");
    refused(
        &|s| drop(s.insert("backbone.block1.99999999999999999999.a".into(), Array::default())),
        "a number from 0 to",
    );
    refused(
        &|s| drop(s.insert("backbone.block1.4000000000.a".into(), Array::default())),
        "a number from 0 to",
    );
    refused(
        &|s| s.get_mut("backbone.LEs.0.fuse_sc.sap.mlp.0.weight").unwrap().shape = vec![2, 4, 3, 3],
        "architecture is not clear",
    );
}

#[test]
fn what_does_not_fit_is_listed() {
    let weights = state(&[("a", array(&[2], &[0.; 2])), ("b", array(&[1], &[0.])), ("z", array(&[], &[0.]))]);
    let names = |list: &[(&str, &[usize])]| -> Vec<_> {
        list.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
    };
    fit(&weights, names(&[("z", &[]), ("a", &[2]), ("b", &[1])]).into_iter()).unwrap();
    let expected = names(&[("a", &[3]), ("b", &[1]), ("c", &[4, 5])]);
    let message = fit(&weights, expected.into_iter()).unwrap_err().to_string();
    for part in
        ["1 missing: c [4, 5]", "1 not expected: z []", "1 of another shape: a is [2] and should be [3]"]
    {
        assert!(message.contains(part), "{message}");
    }
    let many = (0..100).map(|i| (format!("n{i:02}"), vec![1]));
    let message = fit(&weights, many).unwrap_err().to_string();
    assert!(message.contains("100 missing: n00 [1], n01 [1], n02 [1], n03 [1], n04 [1], …;"), "{message}");
}

#[test]
fn golden_files_agree() {
    let Some(zip) = golden("nano_release.pth") else { return };
    let read = |name| checkpoint::read(golden(name).unwrap()).unwrap();
    let (whole, none) = checkpoint::read(zip).unwrap();
    assert_eq!(none, None);
    assert_eq!(whole, read("nano_release_legacy.pth").0);
    assert_eq!(kind(&whole), Kind::Full);
    let config = detect(&whole).unwrap();
    assert_eq!(config, ModelConfig::new(Encoder::Nano, Arch::Release, 9));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own");
    let meta = Meta::new(config.clone());
    checkpoint::write(&path, &whole, &meta).unwrap();
    assert_eq!(checkpoint::read(&path).unwrap(), (whole.clone(), Some(meta)));

    let encoder = read("nano_encoder.pth").0;
    assert_eq!(encoder, read("nano_encoder_hf.safetensors").0);
    assert_eq!(kind(&encoder), Kind::Encoder);
    assert_eq!(detect(&encoder).unwrap(), config);
    for (name, array) in encoder.iter().filter(|(name, _)| !name.contains("extra_")) {
        assert_eq!(array, &whole[name], "{name}");
        assert_eq!(array, &encoder[&name.replace("backbone.", "backbone.extra_")], "{name}");
    }
    let expected = encoder.iter().map(|(name, array)| (name.clone(), array.shape.clone()));
    let streams =
        ["patch_embed", "block", "norm"].map(|p| [format!("backbone.{p}"), format!("backbone.extra_{p}")]);
    let in_streams = |name: &str| streams.iter().flatten().any(|p| name.starts_with(p.as_str()));
    fit(&whole.into_iter().filter(|(name, _)| in_streams(name)).collect(), expected).unwrap();
}
