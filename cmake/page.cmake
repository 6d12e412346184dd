# cmake -DIN=FOLDER -DOUT=FILE.cc -P page.cmake: the page's files as arrays of bytes.
set(table)
set(arrays)
foreach(file index.html page.css page.js markdown.js icon.svg)
  string(MAKE_C_IDENTIFIER ${file} name)
  file(READ ${IN}/${file} hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(REGEX REPLACE "(0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,)"
         "\\1\n" bytes "${bytes}")
  string(APPEND arrays "constexpr unsigned char k_${name}[] = {\n${bytes}};\n")
  set(path /${file})
  if(file STREQUAL "index.html")
    set(path /)
  endif()
  set(type text/javascript)
  if(file MATCHES "html$")
    set(type text/html)
  elseif(file MATCHES "css$")
    set(type text/css)
  elseif(file MATCHES "svg$")
    set(type image/svg+xml)
  endif()
  string(APPEND table "    {\"${path}\", \"${type}; charset=utf-8\", View(k_${name})},\n")
endforeach()
file(WRITE ${OUT} "#include \"server/page.h\"

namespace mm01::server {
namespace {

template <size_t n>
std::string_view View(const unsigned char (&bytes)[n]) {
  return {reinterpret_cast<const char*>(bytes), n};
}

${arrays}
}  // namespace

std::span<const PageFile> PageFiles() {
  static const PageFile files[] = {
${table}  };
  return files;
}

}  // namespace mm01::server
")
