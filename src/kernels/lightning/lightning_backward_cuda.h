// The twins of lightning_backward.h's ops on a GPU.
//
// q, k, v, out and their gradients are all float32 or all bf16, rows at multiples of 4 elements;
// states and their gradients are float32, and d_s_in is not d_s_out. bf16 with head dim 128 and
// rows at multiples of 16 bytes goes through the tensor cores; SiLU' is half there, within 2^-12 of
// itself, or 2^-25 where it is less than 2^-14.
//
// dq and dk work out the states between blocks for themselves, with the decay on other rows than
// out and dv have it, and long documents of few heads in pieces. So a document that is cut, its
// state handed on, rounds differently: by what float32 leaves open in the state, which shows as a
// last bit of bf16 here and there. out and dv of documents in one piece keep their bits.
#pragma once

#include "device/queue.h"
#include "kernels/lightning/lightning_backward.h"

namespace mm01::cuda {

// On this device.
int64_t LightningBorders(DType type, int64_t rows, int64_t heads, int64_t dim);
void LightningPass(Queue& queue, const LightningPassArgs& args);
void LightningBackward(Queue& queue, const LightningBackwardArgs& args);

}  // namespace mm01::cuda
