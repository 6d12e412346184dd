# What the receipt of the GPU's bench names, as built: the commit, and the hash of the CUDA sources.
# Asked at every build; the object changes where the answer does.
if(MM01_HAS_CUDA)
  set(receipt_cc ${CMAKE_BINARY_DIR}/receipt.cc)
  add_custom_target(mm01_receipt
    COMMAND ${CMAKE_COMMAND} -DSOURCE=${CMAKE_SOURCE_DIR} -DOUT=${receipt_cc}
            -P ${CMAKE_SOURCE_DIR}/cmake/write_receipt.cmake
    BYPRODUCTS ${receipt_cc})
  target_sources(mm01_cli PRIVATE ${receipt_cc})
  add_dependencies(mm01_cli mm01_receipt)
endif()
