// Rotary positions on the first R dims of each head; the rest stay as they are.
//
//   (a, b) = (x_j, x_{j + R/2})  ->  (a cos - b sin, b cos + a sin),   angle = p * theta^(-2j / R)
//
// Frequencies are rounded to float32, as the released code holds them; the angle, its reduction and
// its sine are worked in double, so an angle is as accurate at position 10,000,000 as at 10.
//
// Letters   T rows, H heads, D head dim, R rotary dims (even, at most D), p absolute position.
// Errors    Shapes that disagree are our own bug: Check throws.
#pragma once

#include <cstdint>

#include "device/queue.h"
#include "tensor/tensor.h"

namespace mm01 {

// Cosines and sines of the rows of one step; every softmax layer uses the same.
// position: [T] int64; cos, sin: [T, R / 2] float32.
void RopeTable(Queue& queue, const Tensor& position, double theta, const Tensor& cos,
               const Tensor& sin);

// Turns x in place.  x: [T, H, D] float32, on a GPU also bf16 worked in float32; may be strided.
void Rope(Queue& queue, const Tensor& x, const Tensor& cos, const Tensor& sin);

}  // namespace mm01
