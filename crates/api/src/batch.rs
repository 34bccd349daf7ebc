//! What travels on lanes and links: batches of items, and items with a sequence number.

/// A message that is nothing but `repeated Item items`.
pub trait Batch: prost::Message + Default + 'static {
    /// What is batched.
    type Item: prost::Message + Default + Clone + Send + 'static;
    /// Packs.
    fn pack(items: Vec<Self::Item>) -> Self;
    /// Unpacks.
    fn unpack(self) -> Vec<Self::Item>;
}

/// An item or answer of a lane; answers are matched to items by this number.
pub trait Sequenced: prost::Message + Default + Clone + Send + 'static {
    /// The number.
    fn seq(&self) -> u64;
    /// Sets the number.
    fn set_seq(&mut self, seq: u64);
    /// An answer that says nothing but that all went as expected: whoever can wait for it need not be
    /// woken.
    fn is_plain(&self) -> bool {
        false
    }
}

macro_rules! batches {
    ($($batch:path => $item:path),* $(,)?) => {
        $(impl $crate::Batch for $batch {
            type Item = $item;
            fn pack(items: Vec<$item>) -> Self { Self { items } }
            fn unpack(self) -> Vec<$item> { self.items }
        })*
    };
}

macro_rules! sequenced {
    ($($item:path $(, plain $plain:path)?;)*) => {
        $(impl $crate::Sequenced for $item {
            fn seq(&self) -> u64 { self.seq }
            fn set_seq(&mut self, seq: u64) { self.seq = seq; }
            $(fn is_plain(&self) -> bool { self.outcome() == $plain })?
        })*
    };
}

use crate::wire::{archive, directory, policy, presence, roster};

batches! {
    archive::v1::AppendItemBatch => archive::v1::AppendItem,
    archive::v1::AppendAnswerBatch => archive::v1::AppendAnswer,
    archive::v1::AttachDownBatch => archive::v1::AttachDown,
    archive::v1::AttachUpBatch => archive::v1::AttachUp,
    policy::v1::DecideItemBatch => policy::v1::DecideItem,
    policy::v1::DecideAnswerBatch => policy::v1::DecideAnswer,
    policy::v1::WatchDownBatch => policy::v1::WatchDown,
    policy::v1::WatchUpBatch => policy::v1::WatchUp,
    presence::v1::PublishItemBatch => presence::v1::PublishItem,
    presence::v1::PublishAnswerBatch => presence::v1::PublishAnswer,
    presence::v1::AttachDownBatch => presence::v1::AttachDown,
    presence::v1::AttachUpBatch => presence::v1::AttachUp,
    directory::v1::WatchDownBatch => directory::v1::WatchDown,
    directory::v1::WatchUpBatch => directory::v1::WatchUp,
    roster::v1::WatchDownBatch => roster::v1::WatchDown,
    roster::v1::WatchUpBatch => roster::v1::WatchUp,
}

sequenced! {
    archive::v1::AppendItem;
    archive::v1::AppendAnswer, plain archive::v1::Outcome::Committed;
    policy::v1::DecideItem;
    policy::v1::DecideAnswer;
    presence::v1::PublishItem;
    presence::v1::PublishAnswer;
}
