//! The models that are measured: an identity, a small MLP, ResNet-18 and a text encoder of six layers, as TorchScript
//! source with weights from a fixed seed.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::support::Result;

/// What one row of the input consists of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Contents {
    Fp32,
    /// INT64 below this number.
    Tokens(i64),
}

impl Contents {
    pub(crate) fn datatype(self) -> &'static str {
        match self {
            Self::Fp32 => "FP32",
            Self::Tokens(_) => "INT64",
        }
    }
}

/// A model with one input `x` and one output `y`, both with a batch dimension.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) contents: Contents,
    /// Without the batch dimension.
    pub(crate) shape: &'static [i64],
    /// Elements of FP32 in one row of the output.
    pub(crate) output: usize,
    pub(crate) max_batch: usize,
    /// Whether a run takes so long that what the client costs does not matter.
    pub(crate) heavy: bool,
    source: fn() -> Source,
}

pub(crate) static MODELS: [Model; 4] = [
    Model {
        name: "identity",
        contents: Contents::Fp32,
        shape: &[16],
        output: 16,
        max_batch: 64,
        heavy: false,
        source: identity,
    },
    Model {
        name: "mlp",
        contents: Contents::Fp32,
        shape: &[64],
        output: 10,
        max_batch: 64,
        heavy: false,
        source: mlp,
    },
    Model {
        name: "resnet18",
        contents: Contents::Fp32,
        shape: &[3, 224, 224],
        output: 1000,
        max_batch: 32,
        heavy: true,
        source: resnet18,
    },
    Model {
        name: "encoder",
        contents: Contents::Tokens(VOCABULARY),
        shape: &[TOKENS],
        output: WIDTH,
        max_batch: 32,
        heavy: true,
        source: encoder,
    },
];

/// The model of this name.
pub(crate) fn named(name: &str) -> Result<&'static Model> {
    let known = || MODELS.iter().map(|model| model.name).collect::<Vec<_>>().join(", ");
    let found = MODELS.iter().find(|model| model.name == name);
    found.ok_or_else(|| format!("there is no model {name:?}: {} are expected", known()).into())
}

impl Model {
    /// Its configuration, and what else is to be said in it.
    fn config(&self, more: &str) -> String {
        format!(
            "max_batch_size: {}\n\
             inputs: [{{name: x, dtype: {}, shape: {:?}}}]\n\
             outputs: [{{name: y, dtype: FP32, shape: [{}]}}]\n\
             {more}\n",
            self.max_batch,
            self.contents.datatype(),
            self.shape,
            self.output,
        )
    }
}

/// A model's files, and repositories that have it.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: TempDir,
}

impl Disk {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { dir: tempfile::tempdir()? })
    }

    /// A repository of this name with these models; `more` goes into their configurations.
    pub(crate) fn repository(&self, name: &str, models: &[&Model], more: &str) -> Result<PathBuf> {
        let repository = self.dir.path().join(name);
        for model in models {
            let directory = repository.join(model.name);
            fs::create_dir_all(directory.join("1"))?;
            fs::write(directory.join("config.yaml"), model.config(more))?;
            fs::hard_link(self.file(model, false)?, directory.join("1/model.pt"))?;
        }
        Ok(repository)
    }

    /// The model frozen, as the server runs it, for those who do not freeze.
    pub(crate) fn frozen(&self, model: &Model) -> Result<PathBuf> {
        self.file(model, true)
    }

    fn file(&self, model: &Model, frozen: bool) -> Result<PathBuf> {
        let file = self.dir.path().join(format!("{}{}.pt", model.name, if frozen { "-frozen" } else { "" }));
        if !file.exists() {
            (model.source)().compile(&file, frozen)?;
        }
        Ok(file)
    }
}

/// TorchScript being written.
struct Source {
    forward: String,
    parameters: Vec<String>,
}

impl Source {
    fn new() -> Self {
        Self { forward: "def forward(self, x):\n".to_owned(), parameters: Vec::new() }
    }

    fn line(&mut self, line: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.forward, "    {line}");
    }

    fn parameter(&mut self, name: &str, shape: &[usize], mean: f64) -> String {
        let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
        self.parameters.push(format!("{name}:{}={mean}", sizes.join("x")));
        format!("self.{name}")
    }

    /// The text of a linear layer of `input`.
    fn linear(&mut self, name: &str, from: usize, to: usize, input: &str) -> String {
        let weight = self.parameter(&format!("{name}_w"), &[to, from], 0.0);
        let bias = self.parameter(&format!("{name}_b"), &[to], 0.0);
        format!("torch.linear({input}, {weight}, {bias})")
    }

    /// A convolution and its normalization, as they are after training; its result is called `to`.
    fn convolution(&mut self, name: &str, shape: [usize; 3], stride: usize, from: &str, to: &str) {
        let [inputs, outputs, size] = shape;
        let weight = self.parameter(&format!("{name}_w"), &[outputs, inputs, size, size], 0.0);
        let gain = self.parameter(&format!("{name}_g"), &[outputs], 1.0);
        let bias = self.parameter(&format!("{name}_b"), &[outputs], 0.0);
        let mean = self.parameter(&format!("{name}_m"), &[outputs], 0.0);
        // Weights have a variance of 0.01: what a convolution makes of inputs about 1.
        let expected = (inputs * size * size) as f64 * 0.01;
        let variance = self.parameter(&format!("{name}_v"), &[outputs], expected);
        let padding = size / 2;
        self.line(&format!(
            "{to} = torch.conv2d({from}, {weight}, None, [{stride}, {stride}], [{padding}, {padding}])"
        ));
        self.line(&format!(
            "{to} = torch.batch_norm({to}, {gain}, {bias}, {mean}, {variance}, False, 0.1, 1e-05, True)"
        ));
    }

    fn compile(&self, file: &Path, frozen: bool) -> Result<()> {
        let parameters: Vec<&str> = self.parameters.iter().map(String::as_str).collect();
        let define = if frozen { sconce_torch::define_frozen } else { sconce_torch::define };
        Ok(define(&self.forward, &parameters, file)?)
    }
}

fn identity() -> Source {
    let mut source = Source::new();
    source.line("return x");
    source
}

fn mlp() -> Source {
    let mut source = Source::new();
    let first = source.linear("l1", 64, 256, "x");
    source.line(&format!("x = torch.relu({first})"));
    let second = source.linear("l2", 256, 256, "x");
    source.line(&format!("x = torch.relu({second})"));
    let third = source.linear("l3", 256, 10, "x");
    source.line(&format!("return {third}"));
    source
}

fn resnet18() -> Source {
    let mut source = Source::new();
    source.convolution("stem", [3, 64, 7], 2, "x", "x");
    source.line("x = torch.max_pool2d(torch.relu(x), [3, 3], [2, 2], [1, 1])");
    let mut width = 64;
    for (stage, outputs) in [64, 128, 256, 512].into_iter().enumerate() {
        for block in 0..2 {
            let name = format!("s{stage}b{block}");
            let stride = if outputs == width { 1 } else { 2 };
            source.convolution(&format!("{name}c1"), [width, outputs, 3], stride, "x", "y");
            source.line("y = torch.relu(y)");
            source.convolution(&format!("{name}c2"), [outputs, outputs, 3], 1, "y", "y");
            if outputs != width {
                source.convolution(&format!("{name}down"), [width, outputs, 1], stride, "x", "x");
            }
            source.line("x = torch.relu(y + x)");
            width = outputs;
        }
    }
    source.line("x = torch.flatten(torch.adaptive_avg_pool2d(x, [1, 1]), 1)");
    let last = source.linear("fc", width, 1000, "x");
    source.line(&format!("return {last}"));
    source
}

const VOCABULARY: i64 = 8192;
const TOKENS: i64 = 128;
const WIDTH: usize = 384;
const HEADS: usize = 6;

/// Layers as BERT has them, the normalization last; the answer is the mean over the tokens.
fn encoder() -> Source {
    let mut source = Source::new();
    let words = source.parameter("words", &[VOCABULARY as usize, WIDTH], 0.0);
    let places = source.parameter("places", &[TOKENS as usize, WIDTH], 0.0);
    source.line(&format!("x = torch.embedding({words}, x) + {places}"));
    norm(&mut source, "start", "x");
    for layer in 0..6 {
        for part in ["q", "k", "v"] {
            let projected = source.linear(&format!("a{layer}{part}"), WIDTH, WIDTH, "x");
            let head = WIDTH / HEADS;
            source.line(&format!(
                "{part} = torch.transpose(torch.reshape({projected}, [-1, {TOKENS}, {HEADS}, {head}]), 1, 2)"
            ));
        }
        source.line("y = torch.transpose(torch.scaled_dot_product_attention(q, k, v), 1, 2)");
        let joined = format!("torch.reshape(y, [-1, {TOKENS}, {WIDTH}])");
        let attended = source.linear(&format!("a{layer}o"), WIDTH, WIDTH, &joined);
        norm(&mut source, &format!("n{layer}a"), &format!("x + {attended}"));
        let wide = source.linear(&format!("f{layer}a"), WIDTH, 4 * WIDTH, "x");
        let narrow = source.linear(&format!("f{layer}b"), 4 * WIDTH, WIDTH, &format!("torch.gelu({wide})"));
        norm(&mut source, &format!("n{layer}b"), &format!("x + {narrow}"));
    }
    source.line("return torch.mean(x, [1])");
    source
}

fn norm(source: &mut Source, name: &str, of: &str) {
    let gain = source.parameter(&format!("{name}_g"), &[WIDTH], 1.0);
    let bias = source.parameter(&format!("{name}_b"), &[WIDTH], 0.0);
    source.line(&format!("x = torch.layer_norm({of}, [{WIDTH}], {gain}, {bias})"));
}
