//! libtorch alone, timed: so many callers of so many threads each run batches for a while.
//!
//! A line of the input asks: callers, threads of each, rows of a batch, seconds. A line of the output answers: rows a
//! second, over all callers.

use std::{
    error::Error,
    io::{self, BufRead, Write},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use tch::{CModule, IValue, Kind, TchError, Tensor};

/// Before the clock starts: the executor has optimized, and every thread has what it keeps.
const WARM_UP: usize = 3;

/// A batch of this many rows, with numbers below `vocabulary` where there is one.
fn batch(rows: i64, shape: &[i64], vocabulary: Option<i64>) -> Result<Tensor, TchError> {
    let shape = [&[rows], shape].concat();
    let count: i64 = shape.iter().product();
    let numbers = Tensor::f_arange(count, (Kind::Int64, tch::Device::Cpu))?;
    let values = match vocabulary {
        Some(vocabulary) => numbers.f_mul_scalar(7919i64)?.f_remainder(vocabulary)?,
        None => numbers.f_to_kind(Kind::Float)?.f_sin()?,
    };
    values.f_reshape(shape)
}

/// One caller: rows a second of it.
fn call(
    model: &CModule,
    input: &[IValue],
    threads: i32,
    time: Duration,
    start: &Barrier,
) -> Result<f64, TchError> {
    let _no_grad = tch::no_grad_guard();
    tch::set_num_threads(threads);
    let warm = (0..WARM_UP).try_for_each(|_| model.forward_is(input).map(drop));
    // Also after an error, because the others wait.
    start.wait();
    warm?;
    let begun = Instant::now();
    let mut runs = 0u32;
    while begun.elapsed() < time {
        model.forward_is(input)?;
        runs += 1;
    }
    Ok(f64::from(runs) / begun.elapsed().as_secs_f64())
}

fn answer(
    model: &CModule,
    question: &str,
    shape: &[i64],
    vocabulary: Option<i64>,
) -> Result<f64, Box<dyn Error>> {
    let words: Vec<&str> = question.split(' ').collect();
    let [callers, threads, rows, seconds] = words[..] else {
        return Err("callers, threads, rows and seconds are expected".into());
    };
    let (callers, threads): (usize, i32) = (callers.parse()?, threads.parse()?);
    let (rows, time) = (rows.parse()?, Duration::from_secs_f64(seconds.parse()?));
    let start = Barrier::new(callers);
    let rates: Result<Vec<f64>, TchError> = thread::scope(|scope| {
        let callers: Vec<_> = (0..callers)
            .map(|_| {
                scope.spawn(|| {
                    let input = batch(rows, shape, vocabulary).map(|input| [IValue::Tensor(input)]);
                    match input {
                        Ok(input) => call(model, &input, threads, time, &start),
                        Err(error) => {
                            start.wait();
                            Err(error)
                        }
                    }
                })
            })
            .collect();
        let gone = |_| Err(TchError::Kind("a caller has panicked".to_owned()));
        callers.into_iter().map(|caller| caller.join().unwrap_or_else(gone)).collect()
    });
    Ok(rates?.iter().sum::<f64>() * rows as f64)
}

/// Answers until the end of the input. `vocabulary` is 0 for a model of FP32; `shape` is written `3x224x224`.
pub(crate) fn answers(path: &str, vocabulary: &str, shape: &str) -> Result<(), Box<dyn Error>> {
    let mut model = CModule::load(path)?;
    model.f_set_eval()?;
    let vocabulary = Some(vocabulary.parse()?).filter(|vocabulary| *vocabulary > 0);
    let shape = shape.split('x').map(str::parse).collect::<Result<Vec<i64>, _>>()?;
    let mut output = io::stdout();
    for question in io::stdin().lock().lines() {
        writeln!(output, "{}", answer(&model, &question?, &shape, vocabulary)?)?;
        output.flush()?;
    }
    Ok(())
}
