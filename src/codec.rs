//! Messages to bytes and back: protobuf as tonic does it, but with room for messages as small as ours.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// tonic takes 8 KiB for each call before its message is there, and 8 KiB more for the answer. A message is two short
/// strings; what is longer makes the buffer grow. One that is awaited may have to wait, and thousands beside it: its room is for
/// a usual request twice, which is what tonic takes before it decodes one.
const DECODING_BYTES: usize = 160;
const ENCODING_BYTES: usize = 512;
/// tonic's own: how much of a stream is gathered before it is sent.
const YIELD_BYTES: usize = 32 * 1024;

/// The codec of all that is generated from our proto.
#[derive(Debug)]
pub struct SmallMessages<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallMessages<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallMessages<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(settings(ENCODING_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(settings(DECODING_BYTES))
    }
}

fn settings(buffer_bytes: usize) -> BufferSettings {
    BufferSettings::new(buffer_bytes, YIELD_BYTES)
}
