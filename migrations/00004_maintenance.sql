-- +goose Up

SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- An event of kind drop is a partition's way out, and its state says how far it is: requested (by SQL) or verified (counts and bounds on
-- record, nothing done yet), detached (in its grace period), done (dropped). Or it ended otherwise: refused, or restored (attached again).
-- One of kind expire is rows removed one by one, and one of kind vacuum a VACUUM (FREEZE): verified (begun), then done. All others are done
-- when they are written.
ALTER TABLE audit_partition_event ADD CONSTRAINT audit_partition_event_state_check
    CHECK (state IN ('requested', 'verified', 'detached', 'done', 'refused', 'restored'));
-- One way out at a time; asking twice is asking once.
DROP INDEX audit_partition_event_requested_idx;
CREATE UNIQUE INDEX audit_partition_event_open_idx ON audit_partition_event (partition_name, kind)
    WHERE kind = 'drop' AND state IN ('requested', 'verified', 'detached');
CREATE INDEX audit_partition_event_partition_name_idx ON audit_partition_event (partition_name, id);

ALTER TABLE audit_legal_hold ADD CONSTRAINT audit_legal_hold_reason_check CHECK (reason <> '');

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION drop_old_audit_partitions(retention_days int DEFAULT 2555)
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
    ON CONFLICT (partition_name, kind) WHERE kind = 'drop' AND state IN ('requested', 'verified', 'detached') DO NOTHING;
    RETURN QUERY
        SELECT e.partition_name, e.lower_bound, e.upper_bound, e.requested_by, e.recorded_at
        FROM audit_partition_event e
        WHERE e.kind = 'drop' AND e.state = 'requested' AND e.upper_bound <= cutoff
        ORDER BY e.upper_bound;
END
$$;
-- +goose StatementEnd

-- As before, but pg_get_expr isn't told the relation (there are no columns in a bound): it would lock it, and so wait for whoever keeps readers out of a
-- partition. Looking at the partitions must not wait for one of them.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION audit_log_partition_bounds()
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
    CROSS JOIN LATERAL pg_get_expr(c.relpartbound, 0) AS bound
    CROSS JOIN LATERAL regexp_match(bound, '^FOR VALUES FROM \((.*)\) TO \((.*)\)$') AS bounds
    WHERE i.inhparent = 'audit_log'::regclass
    ORDER BY 3 NULLS FIRST, 2
$$;
-- +goose StatementEnd

-- The first four columns are the replaced system's. What has a state but is no partition any more is detached: in its grace period before it is
-- dropped. Oldest and newest event are two look-ups in an index each, and null without one (or without the right to read the partition).
DROP FUNCTION get_audit_partition_stats();
-- +goose StatementBegin
CREATE FUNCTION get_audit_partition_stats()
RETURNS TABLE (partition_name text, record_count bigint, size_bytes bigint, size_pretty text,
               lower_bound timestamptz, upper_bound timestamptz, index_bytes bigint,
               state text, oldest_event timestamptz, newest_event timestamptz, dead_rows bigint,
               last_analyzed timestamptz, last_vacuumed timestamptz, modified_rows bigint, frozen_at timestamptz, xid_age int)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT SET timezone = 'UTC' SET datestyle = 'ISO, YMD'
AS $$
#variable_conflict use_column
DECLARE
    p record;
BEGIN
    FOR p IN
        WITH known AS (
            SELECT b.relid, b.lower_bound, b.upper_bound,
                   CASE WHEN b.is_detaching THEN 'detaching' WHEN b.is_default THEN 'default' WHEN b.upper_bound <= now() THEN 'past'
                        WHEN b.lower_bound > now() THEN 'future' ELSE 'hot' END AS state
            FROM audit_log_partition_bounds() b
            UNION ALL
            SELECT c.oid, e.lower_bound, e.upper_bound, 'detached'
            FROM audit_partition_event e
            JOIN pg_class parent ON parent.oid = 'audit_log'::regclass
            JOIN pg_class c ON c.relnamespace = parent.relnamespace AND c.relname = e.partition_name AND NOT c.relispartition
            WHERE e.kind = 'drop' AND e.state = 'detached'
        )
        SELECT k.*, c.relname::text AS name, format('%I.%I', n.nspname, c.relname) AS relation, c.reltuples, c.relfrozenxid,
               EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0] AND a.attname = 'timestamp'
                       JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam AND m.amname = 'btree'
                       WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL) AS by_time,
               (SELECT max(v.updated_at) FROM audit_partition_event v
                WHERE v.partition_name = c.relname AND v.kind = 'vacuum' AND v.state = 'done' AND v.id > coalesce((
                    SELECT max(e.id) FROM audit_partition_event e WHERE e.partition_name = c.relname AND e.kind = 'create'), 0)) AS frozen_at
        FROM known k JOIN pg_class c ON c.oid = k.relid JOIN pg_namespace n ON n.oid = c.relnamespace
        ORDER BY k.lower_bound NULLS FIRST, c.relname
    LOOP
        partition_name := p.name;
        record_count   := nullif(p.reltuples, -1)::bigint;
        size_bytes     := pg_total_relation_size(p.relid);
        size_pretty    := pg_size_pretty(size_bytes);
        lower_bound    := p.lower_bound;
        upper_bound    := p.upper_bound;
        index_bytes    := pg_indexes_size(p.relid);
        state          := p.state;
        oldest_event   := NULL;
        newest_event   := NULL;
        dead_rows      := pg_stat_get_dead_tuples(p.relid);
        last_analyzed  := greatest(pg_stat_get_last_analyze_time(p.relid), pg_stat_get_last_autoanalyze_time(p.relid));
        last_vacuumed  := greatest(pg_stat_get_last_vacuum_time(p.relid), pg_stat_get_last_autovacuum_time(p.relid));
        modified_rows  := pg_stat_get_mod_since_analyze(p.relid);
        frozen_at      := p.frozen_at;
        xid_age        := CASE WHEN p.relfrozenxid <> '0'::xid THEN age(p.relfrozenxid) END;
        CONTINUE WHEN size_bytes IS NULL; -- dropped meanwhile
        IF p.by_time THEN
            -- The query locks the partition and each of its indexes until the end of the transaction: with thousands of partitions more than the
            -- server's table of locks holds, and in the way of their retirement. A subtransaction that is rolled back gives them back at once.
            BEGIN
                EXECUTE format('SELECT min(timestamp), max(timestamp) FROM %s', p.relation) INTO oldest_event, newest_event;
                RAISE SQLSTATE 'AS000';
            EXCEPTION
                WHEN SQLSTATE 'AS000' OR undefined_table OR insufficient_privilege THEN NULL;
            END;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION get_audit_partition_stats() IS 'Partitions of audit_log, and those detached and not dropped yet: estimated rows (null before the first analyze), sizes, state, oldest and newest event, vacuum and analyze';
