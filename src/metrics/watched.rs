//! Figures that are known elsewhere, and read when they are asked for.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

/// What a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It grows and shrinks.
    Gauge,
}

/// Where a reader puts what it has read: nothing, one value, or one for each set of labels.
pub struct Samples<'a, 'b> {
    kind: Kind,
    encoder: &'a mut MetricEncoder<'b>,
}

impl Samples<'_, '_> {
    /// A value without labels.
    pub fn one(&mut self, value: f64) -> fmt::Result {
        encode(self.kind, self.encoder, value)
    }

    /// A value with labels, each a name and what it is.
    pub fn labelled<const N: usize>(&mut self, labels: [(&str, &str); N], value: f64) -> fmt::Result {
        let labels = labels.as_slice();
        encode(self.kind, &mut self.encoder.encode_family(&labels)?, value)
    }
}

fn encode(kind: Kind, encoder: &mut MetricEncoder<'_>, value: f64) -> fmt::Result {
    match kind {
        Kind::Counter => encoder.encode_counter::<NoLabelSet, _, f64>(&value, None),
        Kind::Gauge => encoder.encode_gauge(&value),
    }
}

struct Watched<R> {
    kind: Kind,
    name: &'static str,
    help: String,
    unit: Option<Unit>,
    read: R,
}

pub(super) fn collector(
    kind: Kind,
    name: &'static str,
    help: &str,
    unit: Option<Unit>,
    read: impl Fn(&mut Samples<'_, '_>) -> fmt::Result + Send + Sync + 'static,
) -> Box<dyn Collector> {
    // The registry ends the help of what it holds itself in a full stop; so that all read alike:
    let help = format!("{help}.");
    Box::new(Watched { kind, name, help, unit, read })
}

impl<R: Fn(&mut Samples<'_, '_>) -> fmt::Result + Send + Sync + 'static> Collector for Watched<R> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metric_type = match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        };
        let mut encoder =
            encoder.encode_descriptor(self.name, &self.help, self.unit.as_ref(), metric_type)?;
        (self.read)(&mut Samples { kind: self.kind, encoder: &mut encoder })
    }
}

impl<R> fmt::Debug for Watched<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
