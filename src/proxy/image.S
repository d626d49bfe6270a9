/* The program file of the executor, to be started from memory. */
    .section .rodata
    .globl proxy_image_start
    .globl proxy_image_end
    .balign 4096
proxy_image_start:
    .incbin EXECUTOR_IMAGE
proxy_image_end:
    .section .note.GNU-stack, "", @progbits
