//! `grpc.health.v1`: the server under its empty name and the service's, each model under its own.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use sconce_engine::table::{Snapshot, Table};
use sconce_proto::health::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};
use tokio_stream::{Stream, wrappers::WatchStream};
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
                sconce_engine::text::quote(&service)
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
        Ok(Response::new(Box::pin(Watching {
            changes: WatchStream::new(table.watch()),
            table,
            service,
            last: None,
            over: false,
        })))
    }
}

/// The states of one name.
struct Watching {
    changes: WatchStream<()>,
    table: Arc<Table>,
    service: String,
    last: Option<ServingStatus>,
    over: bool,
}

impl Stream for Watching {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.over {
            if ready!(Pin::new(&mut self.changes).poll_next(context)).is_none() {
                break;
            }
            let snapshot = self.table.snapshot();
            // Not while only draining: whoever watches would ask again, and again.
            self.over = snapshot.leaving;
            let status = serving(&snapshot, &self.service).unwrap_or(ServingStatus::ServiceUnknown);
            if self.last.replace(status) != Some(status) {
                return Poll::Ready(Some(Ok(answer(status))));
            }
        }
        Poll::Ready(None)
    }
}
