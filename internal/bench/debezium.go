package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"auditsink/internal/testkit"
)

// debeziumTuning are the settings of Debezium's JDBC sink, and of the consumers that Connect has for it, that its speed depends on. docs/performance.md says why.
// -debezium-set replaces them one by one.
var debeziumTuning = map[string]string{
	"batch.size":                                  "5000",
	"dialect.postgres.unnest.insert.enabled":      "true",
	"consumer.override.max.poll.records":          "5000",
	"consumer.override.fetch.min.bytes":           "1",
	"consumer.override.fetch.max.bytes":           "52428800",
	"consumer.override.max.partition.fetch.bytes": "4194304",
}

// debeziumJVM are the Java options of the Connect worker, unless -debezium-jvm says otherwise.
const debeziumJVM = "-Xms1g -Xmx1g -XX:+UseParallelGC"

// eventSchema tells Connect's JSON converter the members of an event (KIP-1054), since the records of the topic bring no schema. Debezium's own name for a
// text with a time makes it a timestamptz, and that for a text with JSON a jsonb. Members that aren't here are left out, and so is a retentionPolicy that is a number.
const eventSchema = `{"type":"struct","optional":false,"fields":[` +
	`{"field":"timestamp","type":"string","name":"io.debezium.time.ZonedTimestamp","optional":false},` +
	`{"field":"ttl","type":"string","optional":true},` +
	`{"field":"principalId","type":"string","optional":true},` +
	`{"field":"organizationId","type":"string","optional":true},` +
	`{"field":"action","type":"string","optional":false},` +
	`{"field":"targetResourceType","type":"string","optional":true},` +
	`{"field":"targetResourceId","type":"string","optional":true},` +
	`{"field":"status","type":"string","optional":false},` +
	`{"field":"outcomeDescription","type":"string","optional":true},` +
	`{"field":"hash","type":"string","optional":true},` +
	`{"field":"hashAlgorithm","type":"string","optional":true},` +
	`{"field":"eventVersion","type":"string","optional":true},` +
	`{"field":"correlationId","type":"string","optional":true},` +
	`{"field":"dataClassification","type":"string","optional":true},` +
	`{"field":"retentionPolicy","type":"string","optional":true},` +
	`{"field":"processingLatency","type":"int32","optional":true},` +
	`{"field":"archivedAt","type":"string","name":"io.debezium.time.ZonedTimestamp","optional":true},` +
	`{"field":"context","type":"string","name":"io.debezium.data.Json","optional":true}]}`

// eventColumns are the columns whose names differ from the members'.
const eventColumns = "principalId:principal_id,organizationId:organization_id,targetResourceType:target_resource_type,targetResourceId:target_resource_id," +
	"outcomeDescription:outcome_description,hashAlgorithm:hash_algorithm,eventVersion:event_version,correlationId:correlation_id," +
	"dataClassification:data_classification,retentionPolicy:retention_policy,processingLatency:processing_latency,archivedAt:archived_at,context:details"

// debeziumTuned is the tuning that counts: with a task, and so a connection, for each of the ceiling's.
func (b *bench) debeziumTuned() map[string]string {
	tuning := maps.Clone(debeziumTuning)
	tuning["tasks.max"] = strconv.Itoa(b.connections)
	maps.Copy(tuning, b.debeziumSettings)
	return tuning
}

// debeziumFacts are the settings of Debezium for the report.
func (b *bench) debeziumFacts() string {
	tuning := b.debeziumTuned()
	facts := []string{testkit.DebeziumVersion() + ", JDBC sink on Kafka Connect; java " + b.debeziumJVM + ";"}
	for _, name := range slices.Sorted(maps.Keys(tuning)) {
		facts = append(facts, name+"="+tuning[name])
	}
	return strings.Join(facts, " ")
}

// connect is a Kafka Connect process that runs Debezium's JDBC sink.
type connect struct {
	*process
	bench *bench
	group string // of its consumers
	tasks int
}

// startDebezium starts Debezium on a topic, as a group that has to be new, and lets it store the events in audit_log. awaitReady waits until it does.
func (b *bench) startDebezium(ctx context.Context, db *database, topic, group string) (*connect, error) {
	dir := filepath.Join(b.folder, "debezium-"+group)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder for Debezium: %w", err)
	}
	url, err := pgx.ParseConfig(db.url)
	if err != nil {
		return nil, fmt.Errorf("read the database's URL: %w", err)
	}
	connector := map[string]string{
		"name":                           group,
		"connector.class":                "io.debezium.connector.jdbc.JdbcSinkConnector",
		"topics":                         topic,
		"connection.url":                 fmt.Sprintf("jdbc:postgresql://%s:%d/%s", url.Host, url.Port, url.Database),
		"connection.username":            url.User,
		"connection.password":            url.Password,
		"collection.name.format":         "audit_log",
		"insert.mode":                    "insert",
		"primary.key.mode":               "none",
		"schema.evolution":               "none",
		"key.converter":                  "org.apache.kafka.connect.converters.ByteArrayConverter",
		"value.converter":                "org.apache.kafka.connect.json.JsonConverter",
		"value.converter.schemas.enable": "true",
		// As ours: growth hands out events by transactions.
		"consumer.override.isolation.level": "read_committed",
		"value.converter.schema.content":    eventSchema,
		"transforms":                        "columns",
		"transforms.columns.type":           "org.apache.kafka.connect.transforms.ReplaceField$Value",
		"transforms.columns.renames":        eventColumns,
	}
	maps.Copy(connector, b.debeziumTuned())
	tasks, err := strconv.Atoi(connector["tasks.max"])
	if err != nil {
		return nil, fmt.Errorf("read tasks.max: %w", err)
	}
	cmd, err := testkit.ConnectCommand(ctx, testkit.ConnectOptions{
		Dir: dir,
		JVM: strings.Fields(b.debeziumJVM),
		Worker: map[string]string{
			"bootstrap.servers":            strings.Join(b.kafka.Brokers(), ","),
			"key.converter":                "org.apache.kafka.connect.converters.ByteArrayConverter",
			"value.converter":              "org.apache.kafka.connect.converters.ByteArrayConverter",
			"offset.storage.file.filename": filepath.Join(dir, "offsets"),
			"listeners":                    "http://127.0.0.1:0",
			"plugin.discovery":             "service_load",
		},
		Connector: connector,
	})
	if err != nil {
		return nil, err
	}
	p, err := startProcess("Debezium", cmd, filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	p.stopped = 143 // of a JVM that SIGTERM has ended
	return &connect{process: p, bench: b, group: "connect-" + group, tasks: tasks}, nil
}

// awaitReady waits until all its tasks have their lanes. One whose tasks fail never gets there: after five minutes it is given up.
func (c *connect) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("not all of Debezium's tasks had lanes within five minutes"))
	defer cancel()
	admin, err := c.bench.admin()
	if err != nil {
		return err
	}
	defer admin.Close()
	tick := time.NewTicker(5 * pollInterval)
	defer tick.Stop()
	var failed error // the last look
	for {
		if err := c.wait(ctx, tick.C); err != nil {
			return errors.Join(err, failed)
		}
		groups, err := admin.DescribeGroups(ctx, c.group)
		if err != nil { // a broker's first group has to wait for its coordinator
			failed = fmt.Errorf("look at the group %s: %w", c.group, err)
			continue
		}
		if g := groups[c.group]; g.State == "Stable" && len(g.Members) == c.tasks {
			return nil
		}
	}
}

// inserted is how many rows audit_log was given, committed or not: Debezium keeps no position. Reading it costs next to nothing. Once all are inserted it waits
// for the last commits, so that nothing runs any more when it says so.
func (db *database) inserted(ctx context.Context, events int64) (rows int64, err error) {
	var open bool
	err = db.conn.QueryRow(ctx, `SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('audit_log', 'id')::regclass), 0),
		EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' AND backend_xid IS NOT NULL)`).
		Scan(&rows, &open)
	switch {
	case err != nil:
		return 0, fmt.Errorf("read how many rows were inserted: %w", err)
	case rows >= events && open:
		return events - 1, nil
	}
	return rows, nil
}

// verifyDebezium requires that as many rows as events are stored, and that they hold the same as those of our worker, where it knows ours.
func (db *database) verifyDebezium(ctx context.Context, events int, ours digest) error {
	d, err := db.digest(ctx)
	switch {
	case err != nil:
		return err
	case d.Rows != events:
		return fmt.Errorf("of %d events, Debezium stored %d rows", events, d.Rows)
	case ours != digest{} && d != ours:
		return errors.New("the rows of Debezium hold something else than our worker's")
	}
	return nil
}
