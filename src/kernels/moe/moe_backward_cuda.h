// moe_backward.h on a GPU.
#pragma once

#include <vector>

#include "kernels/moe/moe_backward.h"

namespace mm01::cuda {

TrainDispatch MakeTrainDispatch(Queue& queue, const TrainDispatchArgs& args);
void GatherRows(Queue& queue, const TrainDispatch& dispatch, const Tensor& x, bool weighted,
                const Tensor& out);
void CombineRows(Queue& queue, const TrainDispatch& dispatch, const Tensor& rows, bool weighted,
                 const Tensor& y);
void CombineAddNorm(Queue& queue, const TrainDispatch& dispatch, const Tensor& rows,
                    const AddNormArgs& norm);
void CombineGradients(Queue& queue, const TrainDispatch& dispatch,
                      const CombineGradientsArgs& args);
void RouteBackward(Queue& queue, const TrainDispatch& dispatch, const Tensor& weighted_gradient,
                   const Tensor& d_logits);
void BalanceBackward(Queue& queue, const Tensor& logits, const std::vector<double>& weight,
                     double scale, const Tensor& d_logits);

}  // namespace mm01::cuda
