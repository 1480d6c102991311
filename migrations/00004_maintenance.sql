-- +goose Up

SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- An event of kind drop is a partition's way out, and its state says how far it is: requested (by SQL) or verified (counts and bounds on
-- record, nothing done yet), detached (in its grace period), done (dropped). Or it ended otherwise: refused, or restored (attached again).
-- One of kind expire is rows removed one by one: verified, then done. All others are done when they are written.
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
