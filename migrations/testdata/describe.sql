-- The whole schema as lines of text, the same on every supported version: NOT NULL is shown with its column, since
-- Postgres 18 lists it among the constraints too.
WITH ours AS (
    SELECT c.* FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace
), lines (kind, name, position, line) AS (
    SELECT 1, c.relname, 0, format('table %s%s%s', c.relname,
        CASE c.relkind WHEN 'p' THEN ' partition by ' || pg_get_partkeydef(c.oid) END, ' with (' || array_to_string(c.reloptions, ', ') || ')')
    FROM ours c WHERE c.relkind IN ('r', 'p')
    UNION ALL
    SELECT 1, c.relname, a.attnum, concat_ws(' ', '   ', a.attname, format_type(a.atttypid, a.atttypmod),
        CASE WHEN a.attnotnull THEN 'not null' END, 'default ' || pg_get_expr(d.adbin, d.adrelid),
        CASE a.attidentity WHEN 'd' THEN 'identity by default' WHEN 'a' THEN 'identity always' END)
    FROM ours c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relkind IN ('r', 'p')
    UNION ALL
    SELECT 2, k.conname, 0, format('constraint %s on %s: %s', k.conname, c.relname, pg_get_constraintdef(k.oid))
    FROM pg_constraint k JOIN ours c ON c.oid = k.conrelid WHERE k.contype <> 'n'
    UNION ALL
    SELECT 3, c.relname, 0, pg_get_indexdef(c.oid) FROM ours c WHERE c.relkind IN ('i', 'I')
    UNION ALL
    SELECT 4, p.proname, 0, format('function %s(%s) returns %s set %s', p.proname, pg_get_function_arguments(p.oid),
        pg_get_function_result(p.oid), array_to_string(p.proconfig, '; '))
    FROM pg_proc p WHERE p.pronamespace = current_schema()::regnamespace
    UNION ALL
    SELECT 5, c.relname, 0, format('comment on %s: %s', c.relname, obj_description(c.oid, 'pg_class'))
    FROM ours c WHERE obj_description(c.oid, 'pg_class') IS NOT NULL
)
SELECT line FROM lines ORDER BY kind, name COLLATE "C", position
