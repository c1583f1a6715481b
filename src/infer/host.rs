//! A session on the CPU: plans for the shapes met lately, and memory for the largest of them.

use std::collections::HashMap;
use std::sync::Arc;

use super::arena::{Slice, at_least};
use super::network::{self, Network};
use super::pack::Weights;
use super::plan::{Context, Plan, Scratch, Watch};
use super::product::Instructions;
use super::{MOST_SHAPES, Output, Pairs, Wanted};
use crate::tensor::memory;
use crate::{Result, Tensor, cpu};

/// What the CPU computes with.
pub struct Session {
    weights: Arc<Weights>,
    instructions: Instructions,
    networks: HashMap<(usize, usize, usize, Wanted), Network>,
    memory: Tensor,
    scratch: Scratch,
}

impl Session {
    /// Without any plan yet.
    pub fn new(weights: Arc<Weights>, instructions: Instructions) -> Self {
        let (memory, scratch) = (Tensor::zeros([0]), Scratch::new());
        Self { weights, instructions, networks: HashMap::new(), memory, scratch }
    }

    /// The plan for pictures of this size, which was checked.
    pub fn plan(&mut self, pairs: &Pairs, wanted: Wanted) -> &Plan {
        &self.network(pairs, wanted).program.plan
    }

    fn network(&mut self, pairs: &Pairs, wanted: Wanted) -> &mut Network {
        let (Pairs { batch, height, width, .. }, weights) = (*pairs, &self.weights);
        let key = (batch, height, width, wanted);
        if self.networks.len() == MOST_SHAPES && !self.networks.contains_key(&key) {
            self.networks.clear();
        }
        self.networks.entry(key).or_insert_with(|| network::network(weights, batch, height, width, wanted))
    }

    /// Fuses and labels a batch whose sizes were checked; None when `watch` has stopped it.
    ///
    /// # Errors
    /// When it takes more memory than there is.
    pub fn run(&mut self, pairs: &Pairs, wanted: Wanted, watch: Option<Watch>) -> Result<Option<Output<'_>>> {
        let Pairs { batch, height, width, visible, infrared } = *pairs;
        self.network(pairs, wanted);
        let Self { instructions, networks, memory: held, scratch, .. } = self;
        let Some(network) = networks.get_mut(&(batch, height, width, wanted)) else {
            unreachable!("the plan was made above")
        };
        let pixels = batch * height * width;
        if held.len() < network.program.len {
            let Plan { arena, scratch, .. } = network.program.plan;
            let bytes = arena.saturating_add(scratch.saturating_mul(rayon::current_num_threads() + 1));
            let what = format!("a batch of {batch} pairs of {width}x{height} pixels");
            // What is there is freed first.
            memory::check(bytes.saturating_sub(size_of_val(held.f32())), &what)?;
        }
        at_least(held, network.program.len);
        let memory = held.f32_mut();
        let whole = cpu::on_pool(|| {
            scratch.reserve(network.program.scratch);
            for (i, picture) in [visible, infrared].into_iter().enumerate() {
                picture.copy_to(&mut memory[network.program.range(network.pictures.part(i, 2))]);
            }
            network.program.run(&Context::new(*instructions, scratch), memory, watch)
        });
        if !whole {
            return Ok(None);
        }
        let memory = &*memory;
        let floats = |slice: Slice| &memory[network.program.range(slice)];
        let bytes = |slice: Slice| -> &[u8] { bytemuck::cast_slice(floats(slice)) };
        let [image, logits, probabilities] = network.extra.map(|slice| slice.map(floats));
        Ok(Some(Output {
            labels: &bytes(network.labels)[..pixels],
            fused: &bytes(network.fused)[..3 * pixels],
            image,
            logits,
            probabilities,
        }))
    }
}
