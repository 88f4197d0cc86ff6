# How targets are declared here. One folder is one target is one layer; the link graph is the dependency rule.

# Every target compiles under these rules. Contraction to fused multiply-add is off everywhere, because the
# same sum must have the same bits on every host (canonical mode).
add_library(muster_rules INTERFACE)
target_compile_features(muster_rules INTERFACE cxx_std_20)
target_compile_options(muster_rules INTERFACE
  $<$<COMPILE_LANGUAGE:CXX,C>:-Wall -Wextra -Wshadow -Wno-missing-field-initializers -Wno-maybe-uninitialized -ffp-contract=off -fno-fast-math>)
target_include_directories(muster_rules INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
if(MUSTER_WERROR)
  target_compile_options(muster_rules INTERFACE $<$<COMPILE_LANGUAGE:CXX,C>:-Werror>)
endif()
if(MUSTER_SANITIZE)
  # -O1 -g1: what the sanitizers see is the same, and it compiles in half the time. Instrumented code can mislead g++ 12
  # about what is initialised: there that is a warning, in the plain build an error.
  target_compile_options(muster_rules INTERFACE $<$<COMPILE_LANGUAGE:CXX,C>:-fsanitize=${MUSTER_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=all -O1 -g1 -Wno-error=uninitialized>)
  target_link_options(muster_rules INTERFACE -fsanitize=${MUSTER_SANITIZE})
  # The checks of each pointer that is followed (null, alignment, object size) double the time to compile. Where memory is
  # reinterpreted they stay (MUSTER_RAW_MEMORY); elsewhere the address sanitizer finds the same. A test's own code
  # (MUSTER_TEST_CODE) has no checks of undefined behaviour at all. Decision 0009. A target's own options come before these:
  # what takes something back stands here.
  if(MUSTER_SANITIZE MATCHES "undefined")
    set(raw $<BOOL:$<TARGET_PROPERTY:MUSTER_RAW_MEMORY>>)
    set(test $<BOOL:$<TARGET_PROPERTY:MUSTER_TEST_CODE>>)
    target_compile_options(muster_rules INTERFACE
      $<$<AND:$<COMPILE_LANGUAGE:CXX,C>,$<NOT:${raw}>>:-fno-sanitize=null,alignment,object-size>
      $<$<AND:$<COMPILE_LANGUAGE:CXX,C>,${test},$<NOT:${raw}>>:-fno-sanitize=undefined>)
  endif()
  target_compile_options(muster_rules INTERFACE
    $<$<AND:$<COMPILE_LANGUAGE:CXX,C>,$<BOOL:$<TARGET_PROPERTY:MUSTER_TEST_CODE>>,$<NOT:$<BOOL:$<TARGET_PROPERTY:MUSTER_RAW_MEMORY>>>>:-Og>)
endif()

# muster_layer(NAME SOURCES a.cpp … [PUBLIC targets…] [PRIVATE targets…] [RAW_MEMORY])
# A folder of the library: static, position independent, symbols hidden; alias muster::NAME. RAW_MEMORY: it reinterprets
# memory as other types.
function(muster_layer name)
  cmake_parse_arguments(ARG "RAW_MEMORY" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(muster_${name} STATIC ${ARG_SOURCES})
  add_library(muster::${name} ALIAS muster_${name})
  set_target_properties(muster_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden
    C_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON MUSTER_RAW_MEMORY "${ARG_RAW_MEMORY}")
  target_link_libraries(muster_${name} PUBLIC muster_rules ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
endfunction()

# muster_module(NAME SOURCES … LIBS …)
# A run-time module, libmuster_NAME.so: the only place where its third-party library is linked. It is found
# beside libmuster.so (or in $MUSTER_MODULE_PATH), opened with local symbols, and exports one function table.
function(muster_module name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_library(muster_module_${name} MODULE ${ARG_SOURCES})
  set_target_properties(muster_module_${name} PROPERTIES OUTPUT_NAME muster_${name} CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
  target_link_libraries(muster_module_${name} PRIVATE muster_rules ${ARG_LIBS})
  target_link_options(muster_module_${name} PRIVATE -Wl,--exclude-libs,ALL)
  install(TARGETS muster_module_${name} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/muster)
endfunction()

# What `ctest -L quick` runs, and what that loads or starts.
add_custom_target(quick_tests)

# muster_test(NAME SOURCES … [LIBS …] [ARGS …] [LABELS …] [TIMEOUT seconds] [BESIDE [COST seconds]] [ONE_THREAD] [LIGHT])
# One GoogleTest program; tests/ mirrors the source folders. LABELS: quick (default), or long, which only
# scripts/test --quick leaves out, or full, which only --full runs. BESIDE: waits for nothing and computes in one thread,
# so that it may run while another such test runs; the others run alone. COST: its length, for the long ones of those, which
# begin first: in a fresh clone ctest knows no times, and one that begins last has nobody beside it. ONE_THREAD: the thread
# sanitizer has nothing to find in it, and takes long, so with that only the full run has it. LIGHT: its own code computes little, and is compiled with
# -Og in the plain build as it is under sanitizers, which takes a third of the time less, or more (decision 0009).
function(muster_test name)
  cmake_parse_arguments(ARG "BESIDE;ONE_THREAD;LIGHT" "TIMEOUT;COST" "SOURCES;LIBS;LABELS;ARGS" ${ARGN})
  if(NOT ARG_LABELS)
    set(ARG_LABELS quick)
  endif()
  if(ARG_ONE_THREAD AND MUSTER_SANITIZE MATCHES "thread")
    list(REMOVE_ITEM ARG_LABELS quick long)
    list(APPEND ARG_LABELS full)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE muster_rules ${ARG_LIBS} GTest::gtest GTest::gmock GTest::gtest_main)
  if("quick" IN_LIST ARG_LABELS)
    add_dependencies(quick_tests ${name})
  endif()
  set_target_properties(${name} PROPERTIES MUSTER_TEST_CODE ON)
  if(ARG_LIGHT AND NOT MUSTER_SANITIZE)
    target_compile_options(${name} PRIVATE $<$<CONFIG:RelWithDebInfo>:-Og>)
  endif()
  if(CMAKE_CURRENT_SOURCE_DIR MATCHES "tests/(kernels|collectives/nccl)")  # kernels are compiled in their tests
    set_target_properties(${name} PROPERTIES MUSTER_RAW_MEMORY ON)
  endif()
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
  if(NOT ARG_BESIDE)
    set_tests_properties(${name} PROPERTIES RUN_SERIAL ON)
  elseif(ARG_COST)
    set_tests_properties(${name} PROPERTIES COST ${ARG_COST})
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}"
    ENVIRONMENT "MUSTER_MODULE_PATH=${PROJECT_BINARY_DIR}/lib")
endfunction()
