-- +goose Up

SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- One row: which indexes audit_log has, and when its partitions get them. It is the database's and not a worker's setting, for all replicas have to agree.
CREATE TABLE audit_index_profile (
    name       text        NOT NULL DEFAULT 'audit_log' CONSTRAINT audit_index_profile_pkey PRIMARY KEY
                           CONSTRAINT audit_index_profile_name_check CHECK (name = 'audit_log'),
    profile    text        NOT NULL DEFAULT 'full' CONSTRAINT audit_index_profile_profile_check CHECK (profile IN ('full', 'lean')),
    build      text        NOT NULL DEFAULT 'immediate' CONSTRAINT audit_index_profile_build_check CHECK (build IN ('immediate', 'deferred')),
    changed_at timestamptz NOT NULL DEFAULT now(),
    changed_by text        NOT NULL DEFAULT session_user
);
COMMENT ON TABLE audit_index_profile IS 'Which indexes audit_log has, and when its partitions get them; changed by auditsink migrate indexes';
INSERT INTO audit_index_profile (name) VALUES ('audit_log') ON CONFLICT (name) DO NOTHING;

-- As in 00002, but for the names of the indexes.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION create_audit_log_partition(partition_name text, lower_bound timestamptz, upper_bound timestamptz, why text DEFAULT NULL)
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
    -- LIKE names the copies after their columns. They are named as those of audit_log instead, since a deferred build gives a partition a B-tree on timestamp beside the BRIN, and
    -- since indexes are dropped by definition and name. The BRIN goes first: the copy's name may be that of the B-tree.
    FOR entry IN
        WITH parents AS MATERIALIZED (
            SELECT partition_name || substr(i.relname, length('audit_log') + 1) AS name, substring(pg_get_indexdef(i.oid) FROM ' USING .*') AS definition
            FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
            WHERE x.indrelid = parent.oid AND NOT x.indisunique AND i.relname LIKE 'audit\_log\_%'
        ), copies AS MATERIALIZED (
            SELECT c.oid, c.relname, c.relam, substring(pg_get_indexdef(c.oid) FROM ' USING .*') AS definition
            FROM pg_index k JOIN pg_class c ON c.oid = k.indexrelid
            WHERE k.indrelid = child::regclass AND NOT k.indisunique
        )
        SELECT copies.oid::regclass AS copy, parents.name FROM copies JOIN parents USING (definition) JOIN pg_am a ON a.oid = copies.relam
        WHERE copies.relname <> parents.name
        ORDER BY a.amname <> 'brin'
    LOOP
        CONTINUE WHEN to_regclass(format('%s.%I', parent.relnamespace::regnamespace, entry.name)) IS NOT NULL;
        EXECUTE format('ALTER INDEX %s RENAME TO %I', entry.copy, entry.name);
    END LOOP;

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
