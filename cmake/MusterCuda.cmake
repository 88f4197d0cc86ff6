# CUDA's compiler and headers, and NCCL's header, for MUSTER_CUDA=AUTO|OFF|REQUIRED.
#
# An installed toolkit is taken where there is one; otherwise pinned wheels from PyPI are put into the build
# folder, enough to compile and link, with no driver and no GPU. CMake's own CUDA language is not used: it wants a
# toolkit laid out as NVIDIA's installer does, which the wheels are not.
#
# Sets MUSTER_CUDA_FOUND (and MUSTER_CUDA_REASON where false), the target muster_cuda_headers, MUSTER_CUDART_LIBRARY,
# MUSTER_NVCC, MUSTER_NVCC_VERSION, and the function muster_cuda_object.
include_guard(GLOBAL)

set(MUSTER_CUDA_FROM "AUTO" CACHE STRING "Where CUDA comes from: AUTO (toolkit, else wheels), TOOLKIT or WHEELS")
set(MUSTER_CUDA_ARCHITECTURES 80 90 100)

# These compile together: one toolkit release. nvvm and crt are parts of the compiler.
set(MUSTER_CUDA_WHEELS nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)
set(MUSTER_NCCL_WHEELS nvidia-nccl-cu13==2.28.9)

# All presets of one source tree share the wheels.
cmake_path(GET CMAKE_BINARY_DIR PARENT_PATH muster_build_parent)
if(muster_build_parent STREQUAL "${PROJECT_SOURCE_DIR}/build")
  set(muster_wheels_dir "${muster_build_parent}/wheels")
else()
  set(muster_wheels_dir "${CMAKE_BINARY_DIR}/wheels")
endif()

# muster_wheels(PREFIX wheels…): installs them once into a folder of their own; sets PREFIX to it, or to "".
function(muster_wheels out)
  string(SHA1 key "${ARGN}")
  string(SUBSTRING ${key} 0 12 key)
  set(folder ${muster_wheels_dir}/${key})
  if(NOT EXISTS ${folder}/complete)
    find_program(MUSTER_PYTHON NAMES python3)
    set(status "python3 not found")
    if(MUSTER_PYTHON)
      message(STATUS "CUDA: fetching ${ARGN}")
      file(REMOVE_RECURSE ${folder})
      execute_process(COMMAND ${MUSTER_PYTHON} -m pip install --quiet --no-deps --no-cache-dir --disable-pip-version-check
        --only-binary=:all: --target ${folder} ${ARGN}
        RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
    endif()
    if(NOT status EQUAL 0)
      string(STRIP "${text}" text)
      set(${out} "" PARENT_SCOPE)
      set(MUSTER_CUDA_REASON "wheels could not be installed (${status}): ${text}" PARENT_SCOPE)
      return()
    endif()
    file(TOUCH ${folder}/complete)
  endif()
  set(${out} ${folder} PARENT_SCOPE)
endfunction()

set(MUSTER_CUDA_FOUND FALSE)
set(MUSTER_CUDA_REASON "MUSTER_CUDA=OFF")
set(muster_cuda_root "")
set(muster_nccl_include "")

if(NOT MUSTER_CUDA STREQUAL "OFF")
  if(NOT MUSTER_CUDA_FROM STREQUAL "WHEELS")
    find_program(MUSTER_TOOLKIT_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin /usr/local/cuda/bin)
    if(MUSTER_TOOLKIT_NVCC)
      file(REAL_PATH ${MUSTER_TOOLKIT_NVCC} muster_nvcc_path)
      cmake_path(GET muster_nvcc_path PARENT_PATH muster_cuda_root)
      cmake_path(GET muster_cuda_root PARENT_PATH muster_cuda_root)
    else()
      set(MUSTER_CUDA_REASON "no nvcc found")
    endif()
    find_path(MUSTER_TOOLKIT_NCCL nccl.h HINTS ${muster_cuda_root}/include $ENV{NCCL_HOME}/include)
    if(MUSTER_TOOLKIT_NCCL)
      set(muster_nccl_include ${MUSTER_TOOLKIT_NCCL})
    endif()
  endif()
  if(NOT MUSTER_CUDA_FROM STREQUAL "TOOLKIT")
    if(NOT muster_cuda_root)
      muster_wheels(muster_wheels_root ${MUSTER_CUDA_WHEELS})
      if(muster_wheels_root)
        set(muster_cuda_root ${muster_wheels_root}/nvidia/cu13)
      endif()
    endif()
    if(muster_cuda_root AND NOT muster_nccl_include)
      muster_wheels(muster_nccl_root ${MUSTER_NCCL_WHEELS})
      if(muster_nccl_root)
        set(muster_nccl_include ${muster_nccl_root}/nvidia/nccl/include)
      endif()
    endif()
  endif()
endif()

if(muster_cuda_root)
  set(MUSTER_NVCC ${muster_cuda_root}/bin/nvcc)
  file(GLOB muster_cudart_candidates ${muster_cuda_root}/lib64/libcudart.so.* ${muster_cuda_root}/lib/libcudart.so.*
       ${muster_cuda_root}/targets/*/lib/libcudart.so.*)
  if(NOT EXISTS ${muster_cuda_root}/include/cuda_runtime_api.h OR NOT muster_cudart_candidates)
    set(MUSTER_CUDA_REASON "${muster_cuda_root} lacks cuda_runtime_api.h or libcudart")
  elseif(NOT muster_nccl_include)
    set(MUSTER_CUDA_REASON "nccl.h not found: ${MUSTER_CUDA_REASON}")
  else()
    list(GET muster_cudart_candidates 0 MUSTER_CUDART_LIBRARY)
    # A compiler that is there may still be too old for an architecture, or refuse this host compiler.
    set(muster_try ${CMAKE_BINARY_DIR}/CMakeFiles/muster_cuda_try.cu)
    file(WRITE ${muster_try} "#include <cuda_runtime.h>\n__global__ void k(float* x) { *x = 1.0f; }\n")
    execute_process(COMMAND ${MUSTER_NVCC} -ccbin ${CMAKE_CXX_COMPILER} -std=c++20 -gencode
      arch=compute_100,code=sm_100 -c ${muster_try} -o ${muster_try}.o
      RESULT_VARIABLE muster_status OUTPUT_VARIABLE muster_text ERROR_VARIABLE muster_text)
    execute_process(COMMAND ${MUSTER_NVCC} --version OUTPUT_VARIABLE muster_version_text ERROR_QUIET)
    if(muster_status EQUAL 0 AND muster_version_text MATCHES "V([0-9.]+)")
      set(MUSTER_NVCC_VERSION ${CMAKE_MATCH_1})
      set(MUSTER_CUDA_FOUND TRUE)
    else()
      string(STRIP "${muster_text}" muster_text)
      set(MUSTER_CUDA_REASON "${MUSTER_NVCC} does not compile for sm_100: ${muster_text}")
    endif()
  endif()
endif()

if(MUSTER_CUDA_FOUND)
  message(STATUS "CUDA: nvcc ${MUSTER_NVCC_VERSION} at ${muster_cuda_root}, nccl.h in ${muster_nccl_include}")
  add_library(muster_cuda_headers INTERFACE)
  target_include_directories(muster_cuda_headers SYSTEM INTERFACE ${muster_cuda_root}/include ${muster_nccl_include})
elseif(MUSTER_CUDA STREQUAL "REQUIRED")
  message(FATAL_ERROR "MUSTER_CUDA=REQUIRED, but CUDA cannot be compiled: ${MUSTER_CUDA_REASON}")
else()
  message(STATUS "CUDA: not built (${MUSTER_CUDA_REASON})")
endif()

# muster_cuda_object(VARIABLE source.cu)
# Compiles for all architectures; VARIABLE becomes the object's path. Beside it, for the ratchet, lie
# NAME.ptxas.txt (ptxas's report) and NAME.compute_XX.ptx. The rules are those of muster_rules: no contraction,
# rounded division, denormals kept.
#
# No sanitizer sees what nvcc makes, and its flags are the same for all presets: with MUSTER_SANITIZE the object holds only
# what a driver can still compile itself, and there is nothing for the ratchet.
function(muster_cuda_object out source)
  cmake_path(GET source STEM stem)
  cmake_path(ABSOLUTE_PATH source OUTPUT_VARIABLE path)
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/cuda)
  set(object ${folder}/${stem}.cu.o)
  set(report ${folder}/${stem}.ptxas.txt)
  set(flags -ccbin ${CMAKE_CXX_COMPILER} -std=c++20 -O3 --fmad=false -prec-div=true -prec-sqrt=true -ftz=false
    -cudart shared -I${PROJECT_SOURCE_DIR} -Xcompiler=-Wall,-Wextra,-fPIC,-fvisibility=hidden,-ffp-contract=off)
  if(MUSTER_WERROR)
    list(APPEND flags -Werror all-warnings)
  endif()
  set(targets "")
  set(ptx "")
  set(ptx_commands "")
  set(architectures ${MUSTER_CUDA_ARCHITECTURES})
  if(MUSTER_SANITIZE)
    set(targets -gencode arch=compute_80,code=compute_80)
    set(architectures "")
  endif()
  foreach(architecture ${architectures})
    list(APPEND targets -gencode arch=compute_${architecture},code=sm_${architecture})
    list(APPEND ptx ${folder}/${stem}.compute_${architecture}.ptx)
    list(APPEND ptx_commands COMMAND ${MUSTER_NVCC} ${flags} -ptx -arch=compute_${architecture} ${path}
      -o ${folder}/${stem}.compute_${architecture}.ptx)
  endforeach()
  file(MAKE_DIRECTORY ${folder})
  add_custom_command(OUTPUT ${object} ${report} DEPENDS ${path} DEPFILE ${object}.d COMMENT "nvcc ${stem}.cu" VERBATIM
    COMMAND sh -c "report=$1; shift; \"$@\" >\"$report\" 2>&1 || { cat \"$report\" >&2; exit 1; }" sh ${report}
      ${MUSTER_NVCC} ${flags} ${targets} -Xptxas -v,-warn-spills -MD -MF ${object}.d -c ${path} -o ${object})
  if(ptx)
    add_custom_command(OUTPUT ${ptx} DEPENDS ${object} COMMENT "PTX of ${stem}.cu" VERBATIM ${ptx_commands})
  endif()
  set(${out} ${object} PARENT_SCOPE)
  set(${out}_REPORT ${report} PARENT_SCOPE)
  set(${out}_PTX ${ptx} PARENT_SCOPE)
endfunction()
