# The page of the server, put into mm01_server as bytes.
file(GLOB page_files CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/server/page/*)
set(page_cc ${CMAKE_BINARY_DIR}/page_files.cc)
add_custom_command(
  OUTPUT ${page_cc}
  COMMAND ${CMAKE_COMMAND} -DIN=${CMAKE_SOURCE_DIR}/src/server/page -DOUT=${page_cc}
          -P ${CMAKE_SOURCE_DIR}/cmake/page.cmake
  DEPENDS ${page_files} ${CMAKE_SOURCE_DIR}/cmake/page.cmake)
target_sources(mm01_server PRIVATE ${page_cc})
