//! What callers see of scheduling: codes, deadlines, and how much of the machine is used.

use std::{fs, path::Path, process::Command};

use sconce_proto::inference::{ModelInferRequest, RepositoryModelLoadRequest};
use tonic::Code;

use crate::{
    harness::{Repo, Server, fp32, refused, request, root, run, sconce, stdout},
    raw::{Raw, framed},
};

/// RPCs of tonic's services, which do not know deadlines.
const OTHERS: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

#[tokio::test]
async fn a_deadline_that_passes_is_answered_as_one_on_every_rpc() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start(repo.path());
    let connection = Raw::connect(&server).await;
    let proto = fs::read_to_string(root().join("proto/grpc_service.proto")).expect("the contract");
    let ours = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
    let mut served = 0;
    for rpc in ours.chain(OTHERS) {
        // The message never comes to its end.
        let mut open = connection.begin(rpc, &[("grpc-timeout", "20m")]).await.expect("a stream");
        open.body.send_data(vec![0; 3].into(), false).expect("a part");
        let status = open.finish().await.status();
        if status.code() != Code::Unimplemented {
            assert_eq!(status.code(), Code::DeadlineExceeded, "{rpc}: {status}");
            assert!(status.message().starts_with("Deadline Exceeded: "), "{rpc}: {status}");
            served += 1;
        }
    }
    assert_eq!(served, 10 + OTHERS.len());
    // A watch ends with its caller's deadline, too: it would hold its place on the connection.
    let answer = connection.send(OTHERS[1], &[("grpc-timeout", "20m")], framed(&[])).await;
    assert_eq!(answer.status().code(), Code::DeadlineExceeded, "{}", answer.status());
    for rpc in OTHERS {
        let status = connection.send(rpc, &[("grpc-timeout", "soon")], framed(&[])).await.status();
        assert_eq!(status.code(), Code::InvalidArgument, "{rpc}: {status}");
    }
    connection
        .call("ModelInfer", &echo())
        .await
        .message::<sconce_proto::inference::ModelInferResponse>()
        .expect("an answer");
}

fn echo() -> ModelInferRequest {
    request("echo", &[("x", "FP32", &[1], fp32(&[1.0]))])
}

#[tokio::test]
async fn triton_s_codes_are_there_for_those_who_ask_for_them() {
    let repo = Repo::new();
    repo.identity("models/liar/1/model.pt");
    // It gives back what it gets, which is FP32.
    repo.file("models/liar/config.yaml", "outputs: [{name: OUTPUT__0, dtype: INT64, shape: [-1]}]\n");
    let settings = repo.file("settings.yaml", "triton-error-codes: true\n").display().to_string();
    let models = repo.path().join("models");
    let cases: [(&[&str], [Code; 2]); 4] = [
        (&[], [Code::Internal, Code::NotFound]),
        (&["--triton-error-codes=false"], [Code::Internal, Code::NotFound]),
        (&["--triton-error-codes"], [Code::InvalidArgument, Code::Internal]),
        (&["--config", &settings], [Code::InvalidArgument, Code::Internal]),
    ];
    for (arguments, [output, load]) in cases {
        let server = Server::start_with(&models, arguments);
        let sent = request("liar", &[("x", "FP32", &[1], fp32(&[1.0]))]);
        refused(server.infer(sent).await, output, &["returned something that cannot be served"]);
        let nobody = RepositoryModelLoadRequest { model_name: "nobody".to_owned(), ..Default::default() };
        let answer = server.client().await.repository_model_load(nobody).await;
        refused(answer, load, &["failed to load 'nobody', failed to poll from model repository"]);
        // What has Triton's code anyway keeps it.
        refused(server.infer(request("nobody", &[])).await, Code::NotFound, &["is not found"]);
        refused(server.infer(request("liar", &[])).await, Code::InvalidArgument, &["'x'"]);
    }
}

/// Runs a command where a container's CPU limit is `quota` microseconds of each 100,000. Only files of a
/// private mount say so: no limit is set on anything. `None` where that cannot be had.
fn limited(quota: u32, command: &Path) -> Option<Command> {
    let allowed =
        Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "none", "/sys/fs/cgroup"]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        return None;
    }
    // Both versions of cgroups, each where this process is in it.
    let script = format!(
        "mount -t tmpfs none /sys/fs/cgroup
        v2=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)
        v1=/sys/fs/cgroup/cpu$(sed -nE 's/^[0-9]+:([^:]*,)?cpu(,[^:]*)?:(.*)/\\3/p' /proc/self/cgroup)
        mkdir -p $v2 $v1
        touch $v2/cgroup.controllers $v1/cgroup.procs
        echo {quota} 100000 >$v2/cpu.max
        echo {quota} >$v1/cpu.cfs_quota_us
        echo 100000 >$v1/cpu.cfs_period_us
        exec \"$@\""
    );
    let mut limited = Command::new("unshare");
    limited.args(["-rm", "sh", "-euc", &script, "sh"]).arg(command);
    Some(limited)
}

#[test]
fn the_cpu_limit_of_a_container_is_rounded_down_to_cores() {
    let all: usize = cores(&stdout(&run(&["version"])));
    for (quota, expected) in [(50_000, 1), (100_000, 1), (150_000, 1), (250_000, 2), (100_000_000, all)] {
        let Some(mut command) = limited(quota, Path::new(sconce().get_program())) else {
            eprintln!("SKIPPED: CPU limits: no private mounts here");
            return;
        };
        let output = command.arg("version").output().expect("the binary can be run");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(cores(&stdout(&output)), expected.min(all), "{quota}");
    }
    let repo = Repo::new();
    let mut command = limited(50_000, Path::new(sconce().get_program())).expect("as before");
    command.args([
        "serve",
        "--grpc-address",
        "127.0.0.1:0",
        "--metrics-address",
        "off",
        "--model-repository",
    ]);
    let server = Server::launch(command.arg(repo.path()));
    server.wait_for("cores: 1, workers of the CPU: 1,");
}

/// The number in the line `cores: N`.
fn cores(version: &str) -> usize {
    let line = version.lines().find_map(|line| line.strip_prefix("cores: "));
    line.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no cores in {version}"))
}
