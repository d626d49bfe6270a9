/* The console's files; each macro is a path in quotes. */
    .section .rodata
#define FILE(name, path) \
    .globl web_##name, web_##name##_end; \
    web_##name: .incbin path; \
    web_##name##_end: .byte 0
FILE(index, WEB_INDEX)
FILE(icon, WEB_ICON)
FILE(script, WEB_SCRIPT)
FILE(style, WEB_STYLE)
    .section .note.GNU-stack, "", @progbits
