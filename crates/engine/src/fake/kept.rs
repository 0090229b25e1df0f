//! Tensors that stay on a device of the scripted backend.

use std::{any::Any, fmt, sync::Arc};

use bytes::Bytes;

use super::Stage;
use crate::{
    DataType,
    backend::Device,
    text::shape_text,
    value::{Arg, Call, DeviceTensor, Kept, Output, Tensor, Value},
};

/// Bytes that remember where they are, and are counted as long as they are there.
pub(super) struct FakeTensor {
    device: Device,
    data_type: DataType,
    shape: Vec<i64>,
    data: Bytes,
    stage: Arc<Stage>,
}

impl FakeTensor {
    fn new(
        device: Device,
        data_type: DataType,
        shape: Vec<i64>,
        data: Bytes,
        stage: &Arc<Stage>,
    ) -> Arc<Self> {
        stage.seen().kept += 1;
        Arc::new(Self { device, data_type, shape, data, stage: Arc::clone(stage) })
    }
}

impl Drop for FakeTensor {
    fn drop(&mut self) {
        self.stage.seen().kept -= 1;
        self.stage.changed.notify_all();
    }
}

impl fmt::Debug for FakeTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} on {}", self.data_type, shape_text(&self.shape), self.device)
    }
}

impl DeviceTensor for FakeTensor {
    fn rows(&self, from: usize, rows: usize) -> Result<Arc<dyn DeviceTensor>, String> {
        let all = self.shape.first().and_then(|all| usize::try_from(*all).ok()).unwrap_or(0);
        if from + rows > all {
            return Err(format!(
                "rows {from} to {} of a tensor of shape {}",
                from + rows,
                shape_text(&self.shape)
            ));
        }
        let row = self.data.len() / all.max(1);
        let mut shape = self.shape.clone();
        shape[0] = i64::try_from(rows).unwrap_or(i64::MAX);
        let data = Bytes::copy_from_slice(&self.data[from * row..(from + rows) * row]);
        Ok(Self::new(self.device, self.data_type, shape, data, &self.stage))
    }

    fn fetch(&self) -> Result<Bytes, String> {
        Ok(self.data.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Its arguments in host memory, for a run on `device`.
pub(super) fn on_host(call: Call, device: Device) -> Result<Vec<Arg>, String> {
    let host = |tensor| host_tensor(tensor, device);
    let argument = |argument| {
        Ok(match argument {
            Arg::Tensor(tensor) => Arg::Tensor(host(tensor)?),
            Arg::Tensors(tensors) => Arg::Tensors(tensors.into_iter().map(host).collect::<Result<_, _>>()?),
            Arg::Dict(entries) => {
                let entries = entries.into_iter().map(|(key, tensor)| Ok((key, host(tensor)?)));
                Arg::Dict(entries.collect::<Result<_, String>>()?)
            }
            other => other,
        })
    };
    call.arguments.into_iter().map(argument).collect()
}

fn host_tensor(tensor: Tensor, device: Device) -> Result<Tensor, String> {
    let Tensor { data_type, shape, value, .. } = tensor;
    let data = match value {
        Value::Host(data) => data,
        Value::Device(kept) => {
            let Some(kept) = kept.as_any().downcast_ref::<FakeTensor>() else {
                return Err("a tensor of another backend".to_owned());
            };
            if kept.device != device {
                return Err(format!("a tensor on {} for a run on {device}", kept.device));
            }
            if (kept.data_type, &kept.shape) != (data_type, &shape) {
                return Err(format!("{kept:?} that is said to be {data_type} {}", shape_text(&shape)));
            }
            kept.data.clone()
        }
        Value::Joined(parts) => join(parts, data_type, &shape, device)?,
    };
    Ok(Tensor::host(data_type, shape, data))
}

fn join(parts: Vec<Tensor>, data_type: DataType, shape: &[i64], device: Device) -> Result<Bytes, String> {
    let mut rows = 0;
    let mut data = Vec::new();
    for part in parts {
        let part = host_tensor(part, device)?;
        if part.data_type != data_type || part.shape.get(1..) != shape.get(1..) {
            let (is, of) = (shape_text(&part.shape), shape_text(shape));
            return Err(format!("a part that is {} {is} of {data_type} {of}", part.data_type));
        }
        part.check()?;
        rows += part.shape.first().copied().unwrap_or(0);
        data.extend_from_slice(part.bytes());
    }
    if shape.first() != Some(&rows) {
        return Err(format!("parts of {rows} rows for {}", shape_text(shape)));
    }
    Ok(data.into())
}

/// What is to be kept of an output stays on the device.
pub(super) fn keep(
    output: Output,
    keep: &[Kept],
    device: Device,
    stage: &Arc<Stage>,
) -> Result<Output, String> {
    let mut left: Vec<&Kept> = keep.iter().collect();
    let mut part = |name: Option<&str>, place: Option<usize>, output: Output| {
        let Some(kept) = left.iter().position(|kept| kept.is(name, place)) else { return Ok(output) };
        let kept = left.swap_remove(kept);
        match output {
            Output::Tensor(tensor) if tensor.data_type.size().is_some() => {
                let Value::Host(data) = tensor.value else { return Err(kept.no_tensor("on its device")) };
                let value = FakeTensor::new(device, tensor.data_type, tensor.shape.clone(), data, stage);
                Ok(Output::Tensor(Tensor { value: Value::Device(value), ..tensor }))
            }
            Output::Tensor(_) | Output::Strings(_) => Err(kept.no_tensor("strings")),
            Output::List(_) | Output::Tuple(_) | Output::Dict(_) => Err(kept.no_tensor("a collection")),
            Output::Other(kind) => Err(kept.no_tensor(&kind)),
        }
    };
    let output = match output {
        Output::Tuple(parts) => {
            let parts = parts.into_iter().enumerate();
            let parts = parts.map(|(place, (name, output))| {
                let output = part(name.as_deref(), Some(place), output)?;
                Ok((name, output))
            });
            Output::Tuple(parts.collect::<Result<_, String>>()?)
        }
        Output::List(parts) => {
            let parts = parts.into_iter().enumerate().map(|(place, output)| part(None, Some(place), output));
            Output::List(parts.collect::<Result<_, _>>()?)
        }
        Output::Dict(parts) => {
            let parts = parts.into_iter().map(|(key, output)| {
                let output = part(Some(&key), None, output)?;
                Ok((key, output))
            });
            Output::Dict(parts.collect::<Result<_, String>>()?)
        }
        one => part(None, Some(0), one)?,
    };
    left.first().map_or(Ok(output), |kept| Err(kept.absent()))
}
