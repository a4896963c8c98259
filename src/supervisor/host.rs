//! The configuration and the host as the control API shows them.

use super::control::Control;
use crate::{
    api::{
        Refusal,
        host::Host,
        types::{ConfigCheck, DoctorReport, Setting},
    },
    config, doctor,
    errors::chain,
};

impl Host for Control {
    fn settings(&self) -> Vec<Setting> {
        config::settings(&self.0.config())
    }

    async fn check_config(&self) -> ConfigCheck {
        let config = self.0.config();
        self.with_context(move |_| {
            let file = config.paths.config_file.clone();
            let checked = match config.reload() {
                Ok(config) => config::check(&config).map_err(chain),
                Err(error) => Err(chain(error)),
            };
            match checked {
                Ok(warnings) => {
                    let warnings = warnings.iter().map(ToString::to_string).collect();
                    ConfigCheck { file, error: None, warnings }
                }
                Err(error) => ConfigCheck { file, error: Some(error), warnings: Vec::new() },
            }
        })
        .await
    }

    async fn doctor(&self) -> Result<DoctorReport, Refusal> {
        let config = self.0.config();
        let examined = self.with_context(move |_| doctor::examine(&config, true)).await;
        examined.map_err(|error| Refusal::Failed(chain(error)))
    }
}
