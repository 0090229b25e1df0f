//! How a model carries out orders, one after the other: each learns the outcome of its own, the last
//! one wins.

use std::time::Instant;

use sconce_repository::{ModelOnDisk, Version};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{
    machine::not_found,
    model::{Model, Work},
    order::{Order, Refused, Wish},
};
use crate::text::quote;

/// An outcome and who waits for it.
pub(super) type Answer = (oneshot::Sender<Result<(), Refused>>, Result<(), Refused>);

/// What the next order asks for at once.
#[derive(Debug)]
pub(super) struct Begun<L> {
    pub(super) retired: Vec<(Version, L)>,
    pub(super) answers: Vec<Answer>,
}

impl<L: Clone> Model<L> {
    /// Takes up the next order whose caller still waits. What is to be unloaded goes at once, what is to be
    /// loaded is for the plan.
    pub(super) fn next_order(&mut self, follows: bool, until: Instant) -> Begun<L> {
        let mut begun = Begun { retired: Vec::new(), answers: Vec::new() };
        self.outlived();
        while self.order.is_none()
            && matches!(self.work, Work::Nothing)
            && let Some((order, reply)) = self.orders.pop_front()
        {
            if reply.is_closed() {
                continue;
            }
            if let Err(refused) = self.can(&order) {
                begun.answers.push((reply, Err(refused)));
                continue;
            }
            self.wished = Some(self.wish.clone());
            self.wish.take(&order, self.disk.as_ref(), follows);
            let version = match order {
                Order::Load { .. } => {
                    (self.order, self.fresh) = (Some((order, reply)), true);
                    break;
                }
                Order::Unload { version } => version,
            };
            info!(model = %self.name, version = version.map(tracing::field::display), "unloaded by request");
            let gone: Vec<Version> = self
                .serving
                .keys()
                .copied()
                .filter(|serving| version.is_none_or(|v| v == *serving))
                .collect();
            begun.retired.extend(gone.into_iter().filter_map(|version| self.retire(version)));
            self.failed.retain(|failed, _| version.is_some_and(|version| version != *failed));
            if self.draining.is_empty() {
                begun.answers.push((reply, Ok(())));
            } else {
                // The caller may want the memory.
                (self.order, self.work) = (Some((order, reply)), Work::Memory(until));
            }
        }
        begun
    }

    /// Whether an order names something that is there.
    fn can(&self, order: &Order) -> Result<(), Refused> {
        match order {
            Order::Load { instead: Some(_), .. } | Order::Unload { version: None } => Ok(()),
            Order::Load { version, instead: None } => {
                let disk = self.disk.as_ref().ok_or_else(|| not_found(&self.name))?;
                if self.gone.is_some() {
                    let text = format!(
                        "failed to load '{}': {} is not there at the moment",
                        self.name,
                        disk.dir.display()
                    );
                    return Err(Refused::NotNow(text));
                }
                version.map_or(Ok(()), |version| self.has(disk, version))
            }
            Order::Unload { version: Some(version) } => match &self.disk {
                _ if self.serving.contains_key(version) => Ok(()),
                Some(disk) => self.has(disk, *version),
                None => Ok(()),
            },
        }
    }

    fn has(&self, disk: &ModelOnDisk, version: Version) -> Result<(), Refused> {
        if disk.versions.contains_key(&version) {
            return Ok(());
        }
        let there: Vec<String> = disk.versions.keys().rev().take(8).map(Version::to_string).collect();
        Err(Refused::NotFound(format!(
            "model '{}' has no version {version}; {} has {}",
            quote(&self.name),
            disk.dir.display(),
            if there.is_empty() { "none".to_owned() } else { there.join(", ") }
        )))
    }

    /// What was asked for is planned now, from the directory as it is now.
    pub(super) fn try_order(&mut self, follows: bool) -> bool {
        if self.fresh && !follows {
            self.taken.clone_from(&self.disk);
        }
        std::mem::take(&mut self.fresh)
    }

    /// The outcome of an order to load, when there is one.
    pub(super) fn answer_load(&mut self) -> Option<Answer> {
        let (Order::Load { version, instead }, _) = self.order.as_ref()? else { return None };
        let (outcome, overriding) = (self.loaded(*version), instead.is_some());
        if outcome.is_err()
            && overriding
            && let Some(before) = self.wished.take()
        {
            // What cannot be loaded must not stand in the way of what can.
            self.wish = before;
            self.failed.clear();
        }
        self.answer(outcome)
    }

    /// The outcome of an order to unload, when there is one: what was in service is gone, or not in time.
    pub(super) fn answer_unload(&mut self, in_time: bool) -> Option<Answer> {
        let late = || {
            let text = "it is out of service, but its memory is not free: a run of it does not end";
            Refused::NotNow(format!("unload of model '{}': {text}", quote(&self.name)))
        };
        let outcome = if in_time { Ok(()) } else { Err(late()) };
        matches!(self.order, Some((Order::Unload { .. }, _))).then(|| self.answer(outcome))?
    }

    /// When it is not waited for any more that memory becomes free.
    pub(super) fn waits_until(&self) -> Option<Instant> {
        match self.work {
            Work::Memory(until) => Some(until),
            Work::Nothing | Work::Task { .. } => None,
        }
    }

    /// The outcome of the order that is being carried out.
    fn answer(&mut self, outcome: Result<(), Refused>) -> Option<Answer> {
        let (_, reply) = self.order.take()?;
        Some((reply, outcome))
    }

    fn loaded(&self, version: Option<Version>) -> Result<(), Refused> {
        let name = quote(&self.name);
        let config = self.source().map(|source| &source.config);
        if let Some(Err(error)) = config {
            return Err(Refused::Failed(format!("failed to load '{name}': {error}")));
        }
        let failed: Vec<String> = self
            .failed
            .iter()
            .filter(|(failed, _)| version.is_none_or(|version| version == **failed))
            .map(|(version, failed)| {
                format!("version {version} is at UNAVAILABLE state: {}", failed.shown.reason)
            })
            .collect();
        let serves = |version: &Version| self.serving.contains_key(version);
        if failed.is_empty() && version.as_ref().map_or(!self.serving.is_empty(), serves) {
            return Ok(());
        }
        if failed.is_empty() {
            let why = self.route().problem.map(|problem| format!(": {problem}")).unwrap_or_default();
            return Err(Refused::Failed(format!("failed to load '{name}', no version is available{why}")));
        }
        let goes_on: Vec<String> = self.serving.keys().map(Version::to_string).collect();
        let goes_on = if goes_on.is_empty() {
            String::new()
        } else {
            format!("; version {} goes on serving", goes_on.join(", "))
        };
        Err(Refused::Failed(format!("load failed for model '{name}': {}{goes_on}", failed.join("; "))))
    }

    /// A wish ends when the directory that it was made against changes, but not while it is being carried
    /// out.
    fn outlived(&mut self) {
        let idle = self.order.is_none() && matches!(self.work, Work::Nothing);
        let Some(before) = self.wish.since.as_ref().filter(|_| idle) else { return };
        let same = match (before, &self.disk) {
            (Some(before), Some(now)) => before.config == now.config && before.versions == now.versions,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !same {
            info!(model = %self.name, "its directory has changed and counts again, not what was asked for before");
            self.wish = Wish::none(true);
        }
    }

    /// Logs what is wrong with a configuration, once for each time that it becomes so, and what a new one
    /// says that has no effect. Not while it may be half written.
    pub(super) fn look_at_config(&mut self, new: &ModelOnDisk) {
        let says = new.config.as_ref().map(|config| config.notes.clone()).map_err(Clone::clone);
        if new.settling || says == self.said {
            return;
        }
        let model = &self.name;
        match &says {
            Ok(notes) => notes.iter().for_each(|note| info!(%model, "{note}")),
            Err(error) if self.serving.is_empty() => warn!(%model, "not served: {error}"),
            Err(error) => {
                warn!(%model, "its new configuration is not taken, it serves by the earlier one: {error}");
            }
        }
        self.said = says;
    }
}
