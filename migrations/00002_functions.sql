-- +goose Up

-- SET search_path FROM CURRENT below fixes this value in every function: they act on this schema's tables whoever calls
-- them, and temporary tables can't shadow those. SET timezone does the same for month boundaries.
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- The partitions with their bounds from the catalog, never from their names. Null means unbounded (MINVALUE, MAXVALUE) or
-- a DEFAULT partition. DateStyle and timezone make the catalog's text safe to read back.
-- +goose StatementBegin
CREATE FUNCTION audit_log_partition_bounds()
RETURNS TABLE (relid oid, partition_name text, lower_bound timestamptz, upper_bound timestamptz, is_default boolean, is_detaching boolean)
LANGUAGE sql STABLE
SET search_path FROM CURRENT SET timezone = 'UTC' SET datestyle = 'ISO, YMD'
AS $$
    SELECT c.oid, c.relname::text,
           CASE WHEN bounds[1] NOT IN ('MINVALUE', '''-infinity''') THEN trim(BOTH '''' FROM bounds[1])::timestamptz END,
           CASE WHEN bounds[2] NOT IN ('MAXVALUE', '''infinity''')  THEN trim(BOTH '''' FROM bounds[2])::timestamptz END,
           bound = 'DEFAULT', i.inhdetachpending
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL pg_get_expr(c.relpartbound, c.oid) AS bound
    CROSS JOIN LATERAL regexp_match(bound, '^FOR VALUES FROM \((.*)\) TO \((.*)\)$') AS bounds
    WHERE i.inhparent = 'audit_log'::regclass
    ORDER BY 3 NULLS FIRST, 2
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION audit_log_partition_bounds() IS 'The partitions of audit_log and their bounds, from the catalog; null means unbounded';

-- Creates one partition and attaches it; null bounds are unbounded. ATTACH takes only SHARE UPDATE EXCLUSIVE on audit_log,
-- so that inserts go on (CREATE TABLE … PARTITION OF would stop them), and adopts the copied indexes. EXCLUDING IDENTITY:
-- ATTACH refuses a table with an identity of its own. LIKE copies neither owner, grants, row security nor storage parameters.
-- +goose StatementBegin
CREATE FUNCTION create_audit_log_partition(partition_name text, lower_bound timestamptz, upper_bound timestamptz, why text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET timezone = 'UTC' SET datestyle = 'ISO, YMD'
AS $$
DECLARE
    parent pg_class%ROWTYPE;
    child  text;
    entry  record;
BEGIN
    SELECT c.* INTO STRICT parent FROM pg_class c WHERE c.oid = 'audit_log'::regclass;
    child := format('%s.%I', parent.relnamespace::regnamespace, partition_name);

    -- Rows only ever come in: vacuum after a tenth of new rows and freeze at once, so that no page is written again later.
    EXECUTE format('CREATE TABLE %s (LIKE audit_log INCLUDING ALL EXCLUDING IDENTITY) WITH (
        autovacuum_vacuum_insert_threshold = 100000, autovacuum_vacuum_insert_scale_factor = 0.1,
        autovacuum_analyze_scale_factor = 0.05, autovacuum_freeze_min_age = 0)', child);

    IF (SELECT c.relowner FROM pg_class c WHERE c.oid = child::regclass) <> parent.relowner THEN
        EXECUTE format('ALTER TABLE %s OWNER TO %I', child, pg_get_userbyid(parent.relowner));
    END IF;
    -- Exactly the parent's grants: default privileges must not open to direct changes what the parent keeps closed.
    FOR entry IN
        SELECT DISTINCT a.grantee FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
        WHERE c.oid = child::regclass
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', child,
            CASE entry.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(entry.grantee)) END);
    END LOOP;
    FOR entry IN
        SELECT DISTINCT a.grantee, a.privilege_type, a.is_grantable
        FROM aclexplode(coalesce(parent.relacl, acldefault('r', parent.relowner))) a
    LOOP
        EXECUTE format('GRANT %s ON %s TO %s%s', entry.privilege_type, child,
            CASE entry.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(entry.grantee)) END,
            CASE WHEN entry.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
    -- Policies stay with the parent; without any, row security closes the partition to direct reads by others.
    IF parent.relrowsecurity THEN
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', child);
    END IF;

    EXECUTE format('ALTER TABLE audit_log ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)', child,
        coalesce(quote_literal(lower_bound), 'MINVALUE'), coalesce(quote_literal(upper_bound), 'MAXVALUE'));
    INSERT INTO audit_partition_event (partition_name, kind, lower_bound, upper_bound, row_count, detail)
    VALUES (create_audit_log_partition.partition_name, 'create', create_audit_log_partition.lower_bound,
            create_audit_log_partition.upper_bound, 0, jsonb_build_object('why', why));
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION create_audit_log_partition(text, timestamptz, timestamptz, text) IS 'Creates one partition of audit_log without blocking inserts';

-- The current month and the six after it, in UTC. A month that some partition covers, even in part, is left alone: the
-- gaps of odd partitions are filled by `auditsink partitions apply`.
-- 7022629598040910951 is 'audit_lg' as a number, the lock that package partitions takes too: whoever creates partitions goes one at a time.
-- +goose StatementBegin
CREATE FUNCTION create_audit_log_partitions()
RETURNS SETOF text
LANGUAGE plpgsql
SET search_path FROM CURRENT SET timezone = 'UTC' SET datestyle = 'ISO, YMD'
AS $$
DECLARE
    month timestamptz;
    after timestamptz;
BEGIN
    PERFORM pg_advisory_xact_lock(7022629598040910951);
    FOR n IN 0..6 LOOP
        month := date_trunc('month', now()) + make_interval(months => n);
        after := month + interval '1 month';
        CONTINUE WHEN EXISTS (
            SELECT FROM audit_log_partition_bounds() b
            WHERE NOT b.is_default
              AND coalesce(b.lower_bound, '-infinity') < after AND coalesce(b.upper_bound, 'infinity') > month);
        RETURN NEXT to_char(month, '"audit_log_"YYYY_MM');
        PERFORM create_audit_log_partition(to_char(month, '"audit_log_"YYYY_MM'), month, after, 'create_audit_log_partitions()');
    END LOOP;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION create_audit_log_partitions() IS 'Creates the missing partitions of the current month and the six after it; returns their names';

-- The first four columns are the replaced system's.
-- +goose StatementBegin
CREATE FUNCTION get_audit_partition_stats()
RETURNS TABLE (partition_name text, record_count bigint, size_bytes bigint, size_pretty text,
               lower_bound timestamptz, upper_bound timestamptz, index_bytes bigint)
LANGUAGE sql STABLE
SET search_path FROM CURRENT SET timezone = 'UTC' SET datestyle = 'ISO, YMD'
AS $$
    SELECT b.partition_name, nullif(c.reltuples, -1)::bigint, pg_total_relation_size(c.oid),
           pg_size_pretty(pg_total_relation_size(c.oid)), b.lower_bound, b.upper_bound, pg_indexes_size(c.oid)
    FROM audit_log_partition_bounds() b
    JOIN pg_class c ON c.oid = b.relid
    ORDER BY b.lower_bound NULLS FIRST, b.partition_name
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION get_audit_partition_stats() IS 'Partitions of audit_log with estimated rows (null before the first analyze) and sizes';

-- Drops nothing: records requests, which the leader carries out under its own rules (retention policies, legal holds,
-- verification). Returns the open requests for the partitions concerned, new and old.
-- +goose StatementBegin
CREATE FUNCTION drop_old_audit_partitions(retention_days int DEFAULT 2555)
RETURNS TABLE (partition_name text, lower_bound timestamptz, upper_bound timestamptz, requested_by text, requested_at timestamptz)
LANGUAGE plpgsql
SET search_path FROM CURRENT SET timezone = 'UTC' SET datestyle = 'ISO, YMD'
AS $$
#variable_conflict use_column
DECLARE
    cutoff timestamptz := now() - make_interval(days => retention_days);
BEGIN
    IF retention_days IS NULL OR retention_days < 1 THEN
        RAISE EXCEPTION 'retention_days must be at least 1' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO audit_partition_event (partition_name, kind, lower_bound, upper_bound, detail, state)
    SELECT b.partition_name, 'drop', b.lower_bound, b.upper_bound,
           jsonb_build_object('why', 'drop_old_audit_partitions()', 'retention_days', retention_days), 'requested'
    FROM audit_log_partition_bounds() b
    WHERE b.upper_bound <= cutoff
    ON CONFLICT (partition_name, kind) WHERE state = 'requested' DO NOTHING;
    RETURN QUERY
        SELECT e.partition_name, e.lower_bound, e.upper_bound, e.requested_by, e.recorded_at
        FROM audit_partition_event e
        WHERE e.kind = 'drop' AND e.state = 'requested' AND e.upper_bound <= cutoff
        ORDER BY e.upper_bound;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION drop_old_audit_partitions(int) IS 'Asks the leader to drop partitions that ended more than retention_days ago; drops nothing itself';
