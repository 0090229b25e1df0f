//! `grpc.health.v1`: the server under its empty name and the service's, each model under its own.

use std::{pin::Pin, sync::Arc};

use sconce_engine::table::{Snapshot, Table};
use sconce_proto::health::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::{Request, Response, Status};

/// The service.
#[derive(Debug)]
pub(crate) struct HealthService {
    pub(crate) table: Arc<Table>,
}

/// `None` for a name that nothing has.
fn serving(snapshot: &Snapshot, service: &str) -> Option<ServingStatus> {
    let ready = match service {
        "" | "inference.GRPCInferenceService" => snapshot.ready(),
        model if snapshot.routes.contains_key(model) => snapshot.model_ready(model, None),
        _ => return None,
    };
    Some(if ready { ServingStatus::Serving } else { ServingStatus::NotServing })
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match serving(&self.table.snapshot(), &service) {
            Some(status) => Ok(Response::new(answer(status))),
            None => Err(Status::not_found(format!(
                "no model and no service is named '{}'; the empty name asks for the server",
                sconce_engine::check::quote(&service)
            ))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Tells the state now and each time it changes. A name that nothing has may get one later. Ends
    /// when the server goes, so that an open watch does not hold the connection.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let table = Arc::clone(&self.table);
        let (mut last, mut over) = (None, false);
        let states = WatchStream::new(table.watch())
            .map(move |()| {
                let snapshot = table.snapshot();
                (serving(&snapshot, &service).unwrap_or(ServingStatus::ServiceUnknown), snapshot.draining)
            })
            .take_while(move |(_, draining)| !std::mem::replace(&mut over, *draining))
            .filter_map(move |(status, _)| {
                (last.replace(status) != Some(status)).then(|| Ok(answer(status)))
            });
        Ok(Response::new(Box::pin(states)))
    }
}
