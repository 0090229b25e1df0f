//! On which devices a model may run.

use std::{collections::BTreeMap, num::NonZeroU32};

use sconce_repository::{InstanceKind, ModelConfig};

use crate::{
    backend::{Device, LoadError},
    pool::Pool,
    scheduler::Placement,
};

/// On which devices a model runs, and how many of its runs at once on each. Without a word from the
/// config: on every GPU, on the CPU where there is none, as many at once as the device has workers.
pub(super) fn place(config: &ModelConfig, pool: &Pool) -> Result<Vec<Placement>, LoadError> {
    let devices = pool.devices();
    let gpus = || (0..devices.len()).filter(|&index| devices[index] != Device::Cpu).collect::<Vec<_>>();
    let cpu = || (0..devices.len()).filter(|&index| devices[index] == Device::Cpu).collect::<Vec<_>>();
    // A device that has failed is left out where the choice is the server's, unless none is left.
    let health: Vec<bool> = pool.status().iter().map(|status| status.healthy).collect();
    let well = |all: Vec<usize>| {
        let well: Vec<usize> = all.iter().copied().filter(|index| health[*index]).collect();
        if well.is_empty() { all } else { well }
    };
    let automatic = || if gpus().is_empty() { cpu() } else { well(gpus()) };
    if config.instances.is_empty() {
        let all = |device| Placement { device, limit: pool.workers(device) };
        return Ok(automatic().into_iter().map(all).collect());
    }
    let mut limits: BTreeMap<usize, usize> = BTreeMap::new();
    for group in &config.instances {
        let chosen = match group.kind {
            InstanceKind::Cpu => cpu(),
            InstanceKind::Auto if group.gpus.is_empty() => automatic(),
            InstanceKind::Gpu if group.gpus.is_empty() => well(gpus()),
            InstanceKind::Auto | InstanceKind::Gpu => {
                let wanted = |gpu: &u32| {
                    let index = devices.iter().position(|&device| device == Device::Gpu(*gpu));
                    index.ok_or_else(|| no_gpu(&format!("GPU {gpu}"), devices))
                };
                group.gpus.iter().map(wanted).collect::<Result<_, _>>()?
            }
        };
        if chosen.is_empty() {
            return Err(no_gpu("a GPU", devices));
        }
        for device in chosen {
            *limits.entry(device).or_default() += NonZeroU32::get(group.count) as usize;
        }
    }
    Ok(limits.into_iter().map(|(device, limit)| Placement { device, limit }).collect())
}

fn no_gpu(wanted: &str, devices: &[Device]) -> LoadError {
    let there: Vec<String> = devices.iter().map(Device::to_string).collect();
    LoadError::new(format!(
        "its instances ask for {wanted}, but this server found only {}; change `instances` or look at `sconce version`",
        there.join(", ")
    ))
}
