//! The sources of `src/cuda`, compiled as C++ as they stand and run on the CPU, against their plain twins.
//!
//! `emulation/cuda.h` stands for the language, `ptx.cpp` and `hopper.cpp` for instructions, `machine.cpp` for the GPU:
//! threads run in an order that a seed decides, and every access to memory is watched. Where there is no C++ compiler,
//! the tests say so and pass. Nothing of this says how fast a GPU is, or what NVIDIA's compiler makes of a kernel.
#![cfg(unix)]

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use candle_core::{Device, Result as Candle, Tensor};
use half::bf16;
use navicache_kernels::{self as kernels, Level, Precision};

/// A file of kernels, as `src/cuda/mod.rs` puts it together, without `ptx.cuh` and `hopper.cuh`: those are what cannot
/// be compiled here.
struct File {
    name: &'static str,
    text: &'static str,
    cases: fn() -> Vec<Case>,
}

const ELEMENTS: File = File {
    name: "elements.cu",
    text: concat!(include_str!("../src/cuda/warp.cuh"), include_str!("../src/cuda/elements.cu")),
    cases: cases_of_elements,
};
const ROWS: File = File { name: "rows.cu", text: include_str!("../src/cuda/rows.cu"), cases: cases_of_rows };
const ATTENTION: File = File {
    name: "attention.cu",
    text: concat!(include_str!("../src/cuda/warp.cuh"), include_str!("../src/cuda/attention.cu")),
    cases: cases_of_attention,
};
const ATTENTION_HOPPER: File = File {
    name: "attention_hopper.cu",
    text: concat!(include_str!("../src/cuda/warp.cuh"), include_str!("../src/cuda/attention_hopper.cu")),
    cases: cases_of_attention_hopper,
};

/// Orders in which threads run.
const SEEDS: [u64; 2] = [1, 20_261_126];

#[test]
fn elements() {
    runs_as_its_twins(&ELEMENTS);
}

#[test]
fn rows() {
    runs_as_its_twins(&ROWS);
}

#[test]
fn attention() {
    runs_as_its_twins(&ATTENTION);
}

#[test]
fn attention_hopper() {
    runs_as_its_twins(&ATTENTION_HOPPER);
}

/// A change to a file that has to be found, and what is said of it.
const BROKEN: &[(&File, &str, &str, &str)] = &[
    (&ELEMENTS, "if (i >= count) return;", "if (i > count) return;", "out of bounds"),
    (&ELEMENTS, "angle / pairs * token_stride", "angle / pairs * head_stride", "instead of"),
    (&ELEMENTS, "y[2 * i + 1]", "y[2 * i]", "instead of"),
    (&ELEMENTS, "if (i + 1 < count) y[i + 1]", "y[i + 1]", "out of bounds"),
    (&ROWS, "__syncthreads(); // the sum before has been read", "", "race"),
    (
        &ROWS,
        "parts[threadIdx.x / 32] = x;\n    __syncthreads();\n    float sum",
        "parts[threadIdx.x / 32] = x;\n    float sum",
        "nobody has written",
    ),
    (
        &ROWS,
        "__syncthreads(); // the sum before has been read",
        "if (threadIdx.x < 32) __syncthreads();",
        "a barrier is not reached by all",
    ),
    (&ROWS, "warp = 0; warp < WARPS", "warp = 1; warp < WARPS", "instead of"),
    (&ROWS, "y[i] = x[i] * factor", "y[i + 1] = x[i] * factor", "out of bounds"),
    (&ROWS, "int step = 16; step > 0", "int step = 16; step > 1", "instead of"),
    (&ATTENTION, "__syncthreads(); // the block before has been read", "", "race"),
    (
        &ATTENTION,
        "v + block * D, m - block);\n        __syncthreads();",
        "v + block * D, m - block);",
        "nobody has written",
    ),
    (&ATTENTION, "row < rows ?", "row <= rows ?", "out of bounds"),
    (&ATTENTION, "if (row >= n) continue;", "", "out of bounds"),
    (&ATTENTION, "lane / 8 % 2 * 8", "lane / 8 % 2 * 4", "not a multiple"),
    (&ATTENTION, "if (key >= m) score", "if (key > m) score", "instead of"),
    (&ATTENTION, "queries[i], part[0], part[1]", "queries[i], part[0], part[2]", "instead of"),
    (&ATTENTION, "__shfl_xor_sync(0xffffffff, x, 2);\n}", "__shfl_xor_sync(0xffffffff, x, 4);\n}", "instead of"),
    (&ATTENTION, "cvt_rn_bf16x2(both, high, low)", "cvt_rn_bf16x2(both, low, high)", "instead of"),
    (&ATTENTION, "ldmatrix_x4_trans(to, row)", "ldmatrix_x4(to, row)", "instead of"),
    (&ATTENTION_HOPPER, "mbarrier_wait(&shared.keys_here[stage], block / STAGES % 2);", "", "instead of"),
    (
        &ATTENTION_HOPPER,
        "mbarrier_wait(&shared.values_here[before], (block - 1) / STAGES % 2);",
        "",
        "more threads arrive",
    ),
    (&ATTENTION_HOPPER, "mbarrier_wait(&shared.keys_read[stage], before);", "", "more threads arrive"),
    (&ATTENTION_HOPPER, "wgmma_wait_group<1>();", "", "instead of"),
    (
        &ATTENTION_HOPPER,
        "mbarrier_init(&shared.keys_read[i], 8)",
        "mbarrier_init(&shared.keys_read[i], 9)",
        "wait for each other",
    ),
    (&ATTENTION_HOPPER, "+ pair + i % 2 >= left", "+ pair + i % 2 > left", "instead of"),
    (&ATTENTION_HOPPER, "i * 16], KEYS * 128", "i * 16], KEYS * 64", "instead of"),
    (&ATTENTION_HOPPER, "if (row >= n) continue;", "", "out of bounds"),
];

/// The checks can fail: each kind of mistake is found, and called by its name.
#[test]
fn broken_kernels_are_found() {
    let Some(host) = Host::find("broken") else { return };
    let mut missed = Vec::new();
    for (i, (file, from, to, expected)) in BROKEN.iter().enumerate() {
        assert!(file.text.contains(from), "{}: there is no `{from}` any more", file.name);
        let program = host.build(&format!("broken-{i}"), file.name, &file.text.replacen(from, to, 1));
        let problem = (file.cases)().into_iter().find_map(|case| case.check(&program).err()).unwrap_or_default();
        if !problem.contains(expected) {
            missed.push(format!("{}: `{to}` for `{from}` should be `{expected}`: {problem:?}", file.name));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// A new file of kernels needs cases here.
#[test]
fn every_file_is_tried() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let found: BTreeSet<String> = names.filter(|name| name.ends_with(".cu")).collect();
    assert_eq!(found, [ELEMENTS, ROWS, ATTENTION, ATTENTION_HOPPER].map(|file| file.name.to_string()).into());
}

fn runs_as_its_twins(file: &File) {
    let name = file.name.trim_end_matches(".cu");
    let Some(host) = Host::find(name) else { return };
    let program = host.build(name, file.name, file.text);
    let cases = (file.cases)();
    let tried: BTreeSet<&str> = cases.iter().map(|case| case.kernel).collect();
    assert_eq!(tried, kernels_in(file.text).into_iter().collect(), "kernels of {} that are tried", file.name);
    let problems: Vec<String> = cases.iter().filter_map(|case| case.check(&program).err()).collect();
    assert!(problems.is_empty(), "{} of {} cases:\n{}", problems.len(), cases.len(), problems.join("\n"));
}

/// Names of the kernels of a source: what stands before the parameters of each `__global__` function.
fn kernels_in(text: &str) -> Vec<&str> {
    let heads = text.split("__global__ void ").skip(1).map(|rest| rest.split(" *y").next().unwrap_or_default());
    let names = heads.map(|head| head.rsplit_once('(').unwrap_or_default().0);
    names.map(|name| name.rsplit(' ').next().unwrap_or_default()).collect()
}

/// A C++ compiler of this machine.
struct Host {
    compiler: String,
    folder: PathBuf,
}

impl Host {
    /// The compiler, and what all programs of a test share built with it. `CXX` names another one.
    fn find(test: &str) -> Option<Host> {
        let works = |name: &String| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
        let named = std::env::var("CXX").into_iter().chain(["c++", "g++", "clang++"].map(String::from));
        let Some(compiler) = named.into_iter().find(works) else {
            eprintln!("skipped: there is no C++ compiler (c++, g++, clang++) to run kernels for GPUs with");
            return None;
        };
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let host = Host { compiler, folder };
        for part in ["machine", "ptx", "hopper"] {
            host.compile(&emulation().join(format!("{part}.cpp")), part, &[]);
        }
        Some(host)
    }

    /// Compiles kernels into a program that runs one of them.
    fn build(&self, name: &str, file: &str, text: &str) -> PathBuf {
        let kernels = kernels_in(text);
        let names: String = kernels.iter().map(|kernel| format!("\"{kernel}\", ")).collect();
        let launches: String = kernels.iter().map(|kernel| format!("machine::Launch<{kernel}>::run, ")).collect();
        let source = format!(
            "#include \"cuda.h\"\n#line 1 \"{file}\"\n{text}\n#include \"launch.h\"\n\
             static const char *const names[] = {{{names}nullptr}};\n\
             static void (*const launches[])() = {{{launches}nullptr}};\n\
             int main() {{ return machine::start(names, launches); }}\n"
        );
        let place = self.folder.join(format!("{name}.cpp"));
        std::fs::write(&place, source).unwrap();
        self.compile(&place, name, &["-fsanitize=thread"]);
        let program = self.folder.join(name);
        let objects = [name, "machine", "ptx", "hopper"].map(|part| self.folder.join(format!("{part}.o")));
        succeeds(Command::new(&self.compiler).args(objects).arg("-o").arg(&program));
        program
    }

    fn compile(&self, source: &Path, name: &str, flags: &[&str]) {
        let mut command = Command::new(&self.compiler);
        command.args(["-std=c++17", "-O1", "-w", "-fno-strict-aliasing", "-fPIE", "-c"]).args(flags);
        command.arg("-I").arg(emulation()).arg(source).arg("-o").arg(self.folder.join(format!("{name}.o")));
        succeeds(&mut command);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

fn emulation() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulation")
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// What a kernel is given for one of its parameters.
enum Argument {
    /// Where so many numbers of f32 go.
    Output(usize),
    /// The same of bf16.
    OutputBf16(usize),
    F32(Vec<f32>),
    Bf16(Vec<f32>),
    /// What the copy engine brings: numbers, sizes and those of a box, fastest first.
    Map(Vec<f32>, [usize; 3], [usize; 3]),
    Null,
    Size(usize),
    Number(f32),
}

/// A call of a kernel, and what it has to give.
struct Case {
    name: String,
    kernel: &'static str,
    /// Blocks, and threads of each.
    grid: (usize, usize),
    arguments: Vec<Argument>,
    expected: Vec<f32>,
    /// Relative to one, or to a number if it is greater.
    tolerance: f32,
}

impl Case {
    /// Runs it in several orders, which must give the same bits, and compares.
    fn check(&self, program: &Path) -> Result<(), String> {
        let of = |e: String| format!("{} {}: {e}", self.kernel, self.name);
        let runs = SEEDS.map(|seed| self.run(program, seed));
        for run in runs.iter() {
            let found = run.as_ref().map_err(|e| of(e.clone()))?;
            if found.len() != self.expected.len() {
                return Err(of(format!("{} numbers instead of {}", found.len(), self.expected.len())));
            }
            for (i, (found, expected)) in found.iter().zip(&self.expected).enumerate() {
                let same = found == expected || (found.is_nan() && expected.is_nan());
                if !same && ((found - expected).abs() > self.tolerance * expected.abs().max(1.0) || found.is_nan()) {
                    return Err(of(format!("{found} instead of {expected} at {i}")));
                }
            }
        }
        let bits = |run: &Result<Vec<f32>, String>| run.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
        if bits(&runs[0]) != bits(&runs[1]) {
            return Err(of("the order of threads makes a difference".to_string()));
        }
        Ok(())
    }

    fn run(&self, program: &Path, seed: u64) -> Result<Vec<f32>, String> {
        let (blocks, threads) = self.grid;
        let mut given =
            format!("kernel {}\nblocks {blocks}\nthreads {threads}\nseed {seed}\n", self.kernel).into_bytes();
        for argument in &self.arguments {
            argument.write(&mut given);
        }
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        // Nothing is printed before everything was read. What ended early says why.
        let _ = child.stdin.take().unwrap().write_all(&given);
        let Output { status, stdout, stderr } = child.wait_with_output().map_err(|e| e.to_string())?;
        match status.success() {
            true if matches!(self.arguments[0], Argument::OutputBf16(_)) => {
                Ok(stdout.chunks_exact(2).map(|x| bf16::from_le_bytes([x[0], x[1]]).to_f32()).collect())
            }
            true => Ok(stdout.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect()),
            false => Err(format!("{} ({status})", String::from_utf8_lossy(&stderr).trim())),
        }
    }
}

impl Argument {
    fn write(&self, to: &mut Vec<u8>) {
        let (line, bytes): (String, Vec<u8>) = match self {
            Argument::Output(count) => (format!("output {}", 4 * count), Vec::new()),
            Argument::OutputBf16(count) => (format!("output {}", 2 * count), Vec::new()),
            Argument::F32(x) => (format!("f32 {}", 4 * x.len()), x.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Argument::Bf16(x) => {
                let bytes = x.iter().flat_map(|x| bf16::from_f32(*x).to_bits().to_le_bytes()).collect();
                (format!("bf16 {}", 2 * x.len()), bytes)
            }
            Argument::Map(x, dims, sizes) => {
                Argument::Bf16(x.clone()).write(to);
                dims.iter().chain(sizes).for_each(|&size| Argument::Size(size).write(to));
                return;
            }
            Argument::Null => ("null".to_string(), Vec::new()),
            Argument::Size(size) => (format!("size {size}"), Vec::new()),
            Argument::Number(number) => (format!("number {}", number.to_bits()), Vec::new()),
        };
        to.extend(line.bytes().chain([b'\n']).chain(bytes));
    }
}

/// What the plain loops give.
fn plain(f: impl Fn() -> Candle<Tensor>) -> Vec<f32> {
    values(&Level::PLAIN.scope(f).unwrap())
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn input(x: &Tensor) -> Argument {
    Argument::F32(values(x))
}

/// Numbers about `size` large that follow from a seed.
fn numbers(shape: &[usize], seed: u64, size: f32) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let numbers = (0..shape.iter().product()).map(|_| size * (next() + next() + next()));
    Tensor::from_vec(numbers.collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}

/// A bias that hides some keys, and from every fifth query all.
fn hidden(shape: &[usize], seed: u64) -> Tensor {
    let width = *shape.last().unwrap();
    let mut x = values(&numbers(shape, seed, 1.0));
    for (i, row) in x.chunks_mut(width).enumerate() {
        row.iter_mut().filter(|x| i % 5 == 0 || **x < -0.5).for_each(|x| *x = f32::NEG_INFINITY);
    }
    Tensor::from_vec(x, shape, &Device::Cpu).unwrap()
}

/// Threads of a block of `elements.cu` and `rows.cu`.
const THREADS: usize = 256;

fn cases_of_elements() -> Vec<Case> {
    const EXTREME: [f32; 12] =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0, 1e-40, 88.7, -88.0, -103.0, 1e10];
    let extreme = Tensor::new(&EXTREME, &Device::Cpu).unwrap();
    let others = [(1, 1.0), (31, 20.0), (255, 0.01), (256, 1.0), (257, 1.0), (700, 20.0)];
    let others = others.map(|(count, size)| numbers(&[count], count as u64, size));
    let mut cases = Vec::new();
    for x in [extreme].iter().chain(&others) {
        let count = x.elem_count();
        for (kernel, expected) in [("gelu", plain(|| kernels::gelu(x))), ("silu", plain(|| kernels::silu(x)))] {
            cases.push(Case {
                name: format!("of {count}"),
                kernel,
                grid: (count.div_ceil(THREADS), THREADS),
                arguments: vec![Argument::Output(count), input(x), Argument::Size(count)],
                expected,
                tolerance: 1e-6,
            });
        }
        cases.push(Case {
            name: format!("of {count}"),
            kernel: "gelu_bf16",
            grid: (count.div_ceil(2).div_ceil(THREADS), THREADS),
            arguments: vec![Argument::OutputBf16(count), input(x), Argument::Size(count)],
            expected: plain(|| kernels::gelu(x)).into_iter().map(|y| bf16::from_f32(y).to_f32()).collect(),
            tolerance: 4e-3, // of bf16
        });
    }
    for (heads, n, pairs) in [(1, 1, 1), (2, 5, 3), (3, 7, 64), (5, 3, 17)] {
        // Heads are columns of the same rows.
        let x = numbers(&[n, heads, 2 * pairs], n as u64, 1.0);
        let (cos, sin) = (numbers(&[n, pairs], 1, 1.0), numbers(&[n, pairs], 2, 1.0));
        let sizes = [heads, n, pairs, 2 * pairs, heads * 2 * pairs].map(Argument::Size);
        let first = [Argument::Output(x.elem_count()), input(&x), input(&cos), input(&sin)];
        cases.push(Case {
            name: format!("of {heads} x {n} x {pairs}"),
            kernel: "rotate_pairs",
            grid: ((heads * n * pairs).div_ceil(THREADS), THREADS),
            arguments: first.into_iter().chain(sizes).collect(),
            expected: plain(|| kernels::rotate_pairs(&x.transpose(0, 1)?, &cos, &sin)),
            tolerance: 2e-6,
        });
    }
    cases
}

fn cases_of_rows() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, dim, size) in [
        (1, 1, 1.0),
        (3, 5, 1.0),
        (2, 31, 30.0),
        (2, 255, 1.0),
        (2, 256, 0.01),
        (3, 257, 1.0),
        (2, 600, 30.0),
        (1, 3000, 1.0),
    ] {
        let (x, scale, shift) = (numbers(&[n, dim], 3, size), numbers(&[dim], 4, 1.0), numbers(&[dim], 5, 1.0));
        let far = (&x + 700.0).unwrap();
        let mut add = |kernel, inputs: &[&Tensor], numbers: &[f32], expected, tolerance| {
            let inputs = inputs.iter().map(|x| input(x));
            let rest = [Argument::Size(dim)].into_iter().chain(numbers.iter().map(|x| Argument::Number(*x)));
            cases.push(Case {
                name: format!("of {n} x {dim}"),
                kernel,
                grid: (n, THREADS),
                arguments: [Argument::Output(n * dim)].into_iter().chain(inputs).chain(rest).collect(),
                expected,
                tolerance,
            });
        };
        for (x, tolerance) in [(&x, 1e-5), (&far, if size < 1.0 { 2e-2 } else { 1e-3 })] {
            let expected = plain(|| kernels::layer_norm(x, &scale, &shift, 1e-6));
            add("layer_norm", &[x, &scale, &shift], &[1e-6, 0.0], expected, tolerance);
            let expected = plain(|| kernels::modulated_layer_norm(x, &scale, &shift, 1e-6));
            add("layer_norm", &[x, &scale, &shift], &[1e-6, 1.0], expected, tolerance);
            add("rms_norm", &[x, &scale], &[1e-6], plain(|| kernels::rms_norm(x, &scale, 1e-6)), 1e-5);
        }
        for x in [&x, &hidden(&[n, dim], 6)] {
            add("softmax", &[x], &[], plain(|| kernels::softmax_last_dim(x)), 2e-6);
        }
        let expected = plain(|| kernels::gated_residual(&x, &far, &scale));
        add("gated_residual", &[&x, &far, &scale], &[], expected, 1e-6);
    }
    cases
}

/// Queries and threads of a block of `attention.cu`.
const QUERIES: usize = 64;
const ATTENTION_THREADS: usize = 128;

fn cases_of_attention() -> Vec<Case> {
    let mut cases = Vec::new();
    for (d, kernel) in [(64, "attention_64"), (128, "attention_128")] {
        for (heads, n, m) in [(1, 1, 1), (2, 15, 17), (1, 64, 64), (2, 65, 63), (1, 70, 129), (3, 17, 1)] {
            // The loops take the rounded inputs in f32. In the kernel, the weights of the values are bf16.
            let (q, k, v) = (rounded([heads, n, d], 7), rounded([heads, m, d], 8), rounded([heads, m, d], 9));
            let scale = 1.0 / (d as f64).sqrt();
            let biases = [None, Some((hidden(&[heads, n, m], 10), [n * m, m])), Some((hidden(&[1, n, m], 11), [0, m]))];
            for (i, bias) in biases.iter().enumerate() {
                let expected =
                    || kernels::attention(&q, &k, &v, scale, bias.as_ref().map(|(bias, _)| bias), Precision::F32);
                let (bias, strides) = match bias {
                    Some((bias, strides)) => (input(bias), *strides),
                    None => (Argument::Null, [0, 0]),
                };
                let first = [Argument::Output(n * heads * d)].into_iter();
                let first = first.chain([&q, &k, &v].map(|x| Argument::Bf16(values(x)))).chain([bias]);
                let sizes = [heads, n, m].into_iter().chain(strides).map(Argument::Size);
                cases.push(Case {
                    name: format!("of {heads} x {n} x {m}, bias {i}"),
                    kernel,
                    grid: (heads * n.div_ceil(QUERIES), ATTENTION_THREADS),
                    arguments: first.chain(sizes).chain([Argument::Number(scale as f32)]).collect(),
                    expected: plain(expected),
                    tolerance: 3e-3,
                });
            }
        }
    }
    cases
}

fn cases_of_attention_hopper() -> Vec<Case> {
    const ROWS: usize = 128; // queries of a block, and keys at a time
    let mut cases = Vec::new();
    for (d, kernel) in [(64, "attention_hopper_64"), (128, "attention_hopper_128")] {
        for (heads, n, m) in [(1, 1, 1), (2, 129, 127), (1, 64, 128), (2, 70, 300), (1, 128, 520)] {
            let (q, k, v) = (rounded([heads, n, d], 7), rounded([heads, m, d], 8), rounded([heads, m, d], 9));
            let scale = 1.0 / (d as f64).sqrt();
            let map = |x: &Tensor| Argument::Map(values(x), [d, x.dim(1).unwrap(), heads], [64, ROWS, 1]);
            let first = [Argument::Output(n * heads * d)].into_iter().chain([&q, &k, &v].map(map));
            cases.push(Case {
                name: format!("of {heads} x {n} x {m}"),
                kernel,
                grid: (heads * n.div_ceil(ROWS), 384),
                arguments: first
                    .chain([heads, n, m].map(Argument::Size))
                    .chain([Argument::Number(scale as f32)])
                    .collect(),
                expected: plain(|| kernels::attention(&q, &k, &v, scale, None, Precision::F32)),
                tolerance: 3e-3,
            });
        }
    }
    cases
}

/// Numbers about one large that bf16 has.
fn rounded(shape: [usize; 3], seed: u64) -> Tensor {
    let x = values(&numbers(&shape, seed, 1.0)).into_iter().map(|x| bf16::from_f32(x).to_f32()).collect::<Vec<_>>();
    Tensor::from_vec(x, &shape, &Device::Cpu).unwrap()
}
