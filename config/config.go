// Package config holds every setting of auditsink. One struct names them: its tags carry the variable, the default,
// the allowed values and the meaning, and loading, checking and the reference in the README all follow from them.
package config

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// Prefix begins the name of every variable.
const Prefix = "AUDITSINK_"

// Config is every setting. The tags of a field:
//
//	envconfig  the variable, without [Prefix]
//	default    what holds where the variable is empty or not set
//	need       the [Need] of which it is a required part
//	oneof      the values allowed, parted by |
//	min, max   the smallest and largest value allowed
//	desc       what it means, for the reference
type Config struct {
	KafkaBrokers []string `envconfig:"KAFKA_BROKERS" need:"kafka" desc:"Brokers to find the cluster by: host:port, parted by commas"`
	KafkaTopics  []string `envconfig:"KAFKA_TOPICS" need:"topics" desc:"Topics to take events from, parted by commas; an entry starting with ^ is a regular expression (RE2, without commas)"`
	KafkaGroup   string   `envconfig:"KAFKA_GROUP" default:"auditsink" desc:"Consumer group, the same for all replicas"`
	KafkaStart   string   `envconfig:"KAFKA_START" default:"earliest" oneof:"earliest|latest" desc:"Where a lane starts that has neither a position nor a committed offset"`

	KafkaSessionTimeout time.Duration `envconfig:"KAFKA_SESSION_TIMEOUT" default:"10s" min:"1s" max:"30m" desc:"Silence of a worker after which the group gives its lanes to others; the brokers bound it too (group.min.session.timeout.ms, 6s by default)"`

	KafkaTLS           bool   `envconfig:"KAFKA_TLS" default:"false" desc:"Connect to the brokers with TLS (1.2 or later)"`
	KafkaTLSCAFile     string `envconfig:"KAFKA_TLS_CA_FILE" desc:"PEM file of the authorities that may sign the brokers' certificates; empty for the system's"`
	KafkaTLSCertFile   string `envconfig:"KAFKA_TLS_CERT_FILE" desc:"PEM file of our certificate, where brokers ask for one (mutual TLS)"`
	KafkaTLSKeyFile    string `envconfig:"KAFKA_TLS_KEY_FILE" desc:"PEM file of our certificate's private key"`
	KafkaTLSServerName string `envconfig:"KAFKA_TLS_SERVER_NAME" desc:"Name to expect in the brokers' certificates; empty for the host connected to"`

	KafkaSASLMechanism string `envconfig:"KAFKA_SASL_MECHANISM" oneof:"|PLAIN|SCRAM-SHA-256|SCRAM-SHA-512" desc:"How to authenticate; empty for not at all"`
	KafkaSASLUsername  string `envconfig:"KAFKA_SASL_USERNAME" desc:"User to authenticate as"`
	KafkaSASLPassword  Secret `envconfig:"KAFKA_SASL_PASSWORD" desc:"That user's password"`

	PostgresURL            Secret `envconfig:"POSTGRES_URL" need:"postgres" desc:"Database to store in: a postgres:// URL or key=value pairs"`
	PostgresMaintenanceURL Secret `envconfig:"POSTGRES_MAINTENANCE_URL" desc:"The same database for migrations and maintenance, around a pooler; empty for AUDITSINK_POSTGRES_URL"`
	PostgresSSLMode        string `envconfig:"POSTGRES_SSLMODE" oneof:"|disable|allow|prefer|require|verify-ca|verify-full" desc:"Replaces the sslmode of the URLs; empty leaves theirs"`
	PostgresPrepared       bool   `envconfig:"POSTGRES_PREPARED" default:"true" desc:"Keep prepared statements on connections; false behind a pooler in transaction mode"`

	PoolMinConns       int32         `envconfig:"POOL_MIN_CONNS" default:"2" min:"0" max:"10000" desc:"Database connections kept open"`
	PoolMaxConns       int32         `envconfig:"POOL_MAX_CONNS" default:"20" min:"1" max:"10000" desc:"Database connections at most, besides one for the leader's lease and, while this worker leads, one for upkeep"`
	PoolIdleTimeout    time.Duration `envconfig:"POOL_IDLE_TIMEOUT" default:"30s" min:"1ms" desc:"Idle time after which a connection above the minimum is closed"`
	PoolAcquireTimeout time.Duration `envconfig:"POOL_ACQUIRE_TIMEOUT" default:"10s" min:"1ms" desc:"Longest wait for a free connection"`
	PoolRetryAttempts  int           `envconfig:"POOL_RETRY_ATTEMPTS" default:"3" min:"1" max:"1000" desc:"Attempts of reads, commands and at start-up while the database can't be reached; storing events retries without end"`
	PoolRetryDelay     time.Duration `envconfig:"POOL_RETRY_DELAY" default:"1s" min:"1ms" desc:"Wait between those attempts"`

	CopyConns int `envconfig:"COPY_CONNS" default:"4" min:"1" max:"10000" desc:"Batches at most that send their rows (COPY) at once, and as many more that had to wait for a lock: the cores of the database's machine, shared out among the workers, give the highest rate where indexes are kept up, and more a lower one"`

	FlushRows     int           `envconfig:"FLUSH_ROWS" default:"5000" min:"1" max:"1000000" desc:"Records at which a lane's batch is stored"`
	FlushBytes    Size          `envconfig:"FLUSH_BYTES" default:"8MiB" min:"1" max:"1GiB" desc:"Bytes of records at which a lane's batch is stored, or half of its share of AUDITSINK_BUFFER_BYTES where that is less"`
	FlushInterval time.Duration `envconfig:"FLUSH_INTERVAL" default:"500ms" min:"1ms" desc:"Age by which a lane's batch is stored: its flush begins earlier by what flushes take, by half of this at most"`
	BufferBytes   Size          `envconfig:"BUFFER_BYTES" default:"32MiB" min:"1" desc:"Bytes of records held in memory, shared out among the lanes; a lane over its share pauses"`

	PartitionInterval string `envconfig:"PARTITION_INTERVAL" default:"month" oneof:"month|day" desc:"How long a partition is that is created ahead of time, in UTC"`
	PartitionAhead    int    `envconfig:"PARTITION_AHEAD" default:"6" min:"1" max:"120" desc:"Intervals for which partitions are created ahead, besides the current one"`

	IndexProfile string        `envconfig:"INDEX_PROFILE" default:"full" oneof:"full|lean" desc:"Indexes of audit_log that migrate up gives a new database: full has the replaced system's, lean the few that serve every filter, for rate; auditsink migrate indexes changes them later"`
	IndexBuild   string        `envconfig:"INDEX_BUILD" default:"immediate" oneof:"immediate|deferred" desc:"When partitions get the indexes of the profile: immediate keeps them up with each row, deferred has the leader build them once a partition's interval has ended"`
	IndexGrace   time.Duration `envconfig:"INDEX_GRACE" default:"1h" min:"0s" max:"720h" desc:"Time after the end of a partition's interval, for late events, before its deferred indexes are built"`

	RetentionEnforce   bool `envconfig:"RETENTION_ENFORCE" default:"false" desc:"Remove what has expired by audit_retention_policy and is under no legal hold; false only tells what would go (auditsink partitions plan)"`
	RetentionMinDays   int  `envconfig:"RETENTION_MIN_DAYS" default:"30" min:"1" max:"36500" desc:"Days for which every event is kept, whatever its policy says"`
	RetentionGraceDays int  `envconfig:"RETENTION_GRACE_DAYS" default:"7" min:"0" max:"3650" desc:"Days between the detaching of an expired partition and its drop, during which auditsink partitions restore attaches it again"`

	LeaderLease         time.Duration `envconfig:"LEADER_LEASE" default:"30s" min:"1s" max:"1h" desc:"Time after which another replica does maintenance in place of one that has crashed"`
	MaintenanceInterval time.Duration `envconfig:"MAINTENANCE_INTERVAL" default:"10m" min:"100ms" max:"24h" desc:"Time between two rounds of the leader's maintenance of partitions"`

	RedisURL     Secret        `envconfig:"REDIS_URL" desc:"Redis for the cache of queries and the figures of all replicas: redis:// or rediss://; empty for none"`
	RedisTimeout time.Duration `envconfig:"REDIS_TIMEOUT" default:"250ms" min:"1ms" max:"10s" desc:"Longest wait for Redis, after which one goes on without it"`

	TokensFile      string        `envconfig:"TOKENS_FILE" desc:"File of the bearer tokens that may read (auditsink query token makes a line of it), looked at again when it changes; empty answers /v1 on loopback only"`
	Token           Secret        `envconfig:"TOKEN" desc:"Bearer token that auditsink status shows to a worker"`
	QueryMaxConns   int32         `envconfig:"QUERY_MAX_CONNS" default:"4" min:"1" max:"1000" desc:"Database connections at most for reads, in a pool of their own: ingest never waits for them"`
	QueryTimeout    time.Duration `envconfig:"QUERY_TIMEOUT" default:"10s" min:"10ms" max:"1h" desc:"Longest time of one query of the read API"`
	SlowQuery       time.Duration `envconfig:"SLOW_QUERY" default:"1s" min:"1ms" desc:"Duration from which a query is logged as slow, with its text and plan but no values"`
	CacheTTL        time.Duration `envconfig:"CACHE_TTL" default:"1h" min:"0" max:"24h" desc:"Longest life of a cached answer, that of past months; what is newer lives shorter; 0 for no cache"`
	CacheEntryBytes Size          `envconfig:"CACHE_ENTRY_BYTES" default:"1MiB" min:"1" max:"64MiB" desc:"Largest answer that is cached"`

	ReportInterval  time.Duration `envconfig:"REPORT_INTERVAL" default:"5m" min:"1s" max:"24h" desc:"Time between two performance reports"`
	DatabaseMemory  Size          `envconfig:"DATABASE_MEMORY" default:"0" min:"0" desc:"Memory of the database's machine, which advice on the server's settings depends on; 0 for this machine's where the database runs on it, otherwise unknown"`
	DatabaseCores   int           `envconfig:"DATABASE_CORES" default:"0" min:"0" max:"4096" desc:"Cores of the database's machine; 0 as with the memory"`
	OptimizeCache   bool          `envconfig:"OPTIMIZE_CACHE" default:"true" desc:"Clear the cache of queries, and leave it alone for a while, when it doesn't pay"`
	OptimizeAnalyze bool          `envconfig:"OPTIMIZE_ANALYZE" default:"true" desc:"As the leader, ANALYZE partitions whose statistics are stale"`
	OptimizeVacuum  bool          `envconfig:"OPTIMIZE_VACUUM" default:"true" desc:"As the leader, VACUUM partitions with many dead rows"`

	AlertInterval   time.Duration `envconfig:"ALERT_INTERVAL" default:"15s" min:"100ms" max:"1h" desc:"Time between two looks of the alert rules"`
	AlertRulesFile  string        `envconfig:"ALERT_RULES_FILE" desc:"YAML file that changes the alert rules: threshold, window, for, cool_down, off"`
	AlertWebhookURL Secret        `envconfig:"ALERT_WEBHOOK_URL" desc:"Where alerts are sent, as JSON by POST; empty for nowhere"`
	AlertWebhookKey Secret        `envconfig:"ALERT_WEBHOOK_KEY" desc:"HMAC key that signs what is sent there"`

	EventMaxBytes        Size   `envconfig:"EVENT_MAX_BYTES" default:"1MiB" min:"1" max:"1GiB" desc:"Largest record taken; a larger one is quarantined as too_large"`
	EventSignatureKey    Secret `envconfig:"EVENT_SIGNATURE_KEY" desc:"HMAC key of the producers' signatures; empty leaves signatures unchecked"`
	RetentionHorizonDays int    `envconfig:"RETENTION_HORIZON_DAYS" default:"2555" min:"1" max:"36500" desc:"Age in days beyond which an event is quarantined as timestamp_out_of_range"`

	HTTPAddr        string        `envconfig:"HTTP_ADDR" default:"127.0.0.1:9464" desc:"Address of metrics, health and the read API: host:port"`
	ShutdownTimeout time.Duration `envconfig:"SHUTDOWN_TIMEOUT" default:"30s" min:"1s" desc:"Longest time to store what is buffered and leave the group, once told to stop"`
	LogLevel        string        `envconfig:"LOG_LEVEL" default:"info" oneof:"debug|info|warn|error" desc:"Least severe messages logged"`
	LogFormat       string        `envconfig:"LOG_FORMAT" default:"json" oneof:"json|console" desc:"Form of log lines, on standard error"`
}

// Need is a part of the settings that a command can't do without.
type Need uint8

// The needs there are. Topics is apart from Kafka because a producer may be told its topic otherwise.
const (
	Kafka    Need = iota + 1 // the brokers
	Topics                   // the topics to consume
	Postgres                 // the database
)

// String is the word for a need in the tags of [Config].
func (n Need) String() string {
	switch n {
	case Kafka:
		return "kafka"
	case Topics:
		return "topics"
	case Postgres:
		return "postgres"
	default:
		return fmt.Sprintf("need %d", uint8(n))
	}
}

// Default returns the settings as they are without an environment, for settings made in code.
func Default() Config {
	var cfg Config
	for _, s := range settings() {
		v, err := parse(s.Type, unset, s.Tag.Get("default"))
		if err != nil {
			panic(fmt.Sprintf("default of %s: %v", s.variable(), err)) // a slip in the tags of Config
		}
		s.of(&cfg).Set(v)
	}
	return cfg
}

// Setting is one variable and its value, fit to be shown.
type Setting struct {
	Variable string
	Value    string // "(set)" or "(not set)" for a secret
}

// Settings lists every setting in the order of the reference.
func (c Config) Settings() []Setting {
	var all []Setting
	for _, s := range settings() {
		value := show(s.of(&c))
		if s.secret() && value == "" {
			value = "(not set)"
		}
		all = append(all, Setting{Variable: s.variable(), Value: value})
	}
	return all
}

// setting is a field of Config.
type setting struct{ reflect.StructField }

func settings() []setting {
	var all []setting
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Config]()) {
		all = append(all, setting{f})
	}
	return all
}

// variable is the full name of the variable that sets it.
func (s setting) variable() string { return Prefix + s.Tag.Get("envconfig") }

// file is the variable that names a file with the value; secrets have one.
func (s setting) file() string { return s.variable() + "_FILE" }

func (s setting) secret() bool { return s.Type == reflect.TypeFor[Secret]() }

// oneof lists the values allowed, nil for any.
func (s setting) oneof() []string {
	if tag, ok := s.Tag.Lookup("oneof"); ok {
		return strings.Split(tag, "|")
	}
	return nil
}

func (s setting) of(c *Config) reflect.Value { return reflect.ValueOf(c).Elem().FieldByIndex(s.Index) }

// show is a value as the environment would give it, a secret's as "(set)".
func show(v reflect.Value) string {
	if list, ok := v.Interface().([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(v.Interface())
}
