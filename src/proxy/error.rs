//! Why the proxy cannot start.

use std::process::ExitCode;

use crate::admin::AdminError;
use crate::downstream::ListenError;
use crate::takeover::TakeoverError;
use crate::upstream::TlsSetupError;

/// The configuration names something that cannot be used (a certificate that is not there).
pub(super) const BAD_CONFIGURATION: u8 = 64;

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    #[error(
        "redbouncer would connect to itself: it would listen on {0}, and the host of upstream.url is this one: set the \
         Redis server's address"
    )]
    Itself(String),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("the takeover has failed; the running process continues to serve: {0}")]
    Takeover(#[from] TakeoverError),
    #[error("cannot install the metrics exporter: {0}")]
    Metrics(String),
    #[cfg(feature = "otlp")]
    #[error("cannot export spans to tracing.otlp_endpoint: {0}")]
    Traces(String),
    #[error("the operating system refuses: {0}")]
    System(#[from] std::io::Error),
}

impl StartError {
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Tls(_) | Self::Itself(_) => ExitCode::from(BAD_CONFIGURATION),
            #[cfg(feature = "otlp")]
            Self::Traces(_) => ExitCode::from(BAD_CONFIGURATION),
            Self::Listen(_) | Self::Admin(_) | Self::Takeover(_) | Self::Metrics(_) | Self::System(_) => {
                ExitCode::FAILURE
            }
        }
    }
}
