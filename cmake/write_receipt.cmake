# cmake -DSOURCE=FOLDER -DOUT=FILE -P write_receipt.cmake: FILE defines what src/cli/receipt.h
# declares. Without git the commit is empty.
execute_process(COMMAND git describe --always --dirty --exclude=* WORKING_DIRECTORY ${SOURCE}
                OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
                RESULT_VARIABLE failed)
if(failed)
  set(commit "")
endif()
execute_process(COMMAND ${SOURCE}/tools/cuda_sources.sh OUTPUT_VARIABLE sources
                OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
file(CONFIGURE OUTPUT ${OUT} @ONLY CONTENT [[#include "cli/receipt.h"

namespace mm01::cli {

const char* const kBuiltCommit = "@commit@";
const char* const kBuiltCudaSources = "@sources@";

}  // namespace mm01::cli
]])
