{{/* Names, labels and the parts that all pods share. */}}

{{- define "millrace.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}
{{- end }}

{{- define "millrace.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "millrace.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "millrace.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{/* A class of workers: the defaults with what it says itself. Given a list of the root and the class's name. */}}
{{- define "millrace.workerClass" -}}
{{- $root := index . 0 }}
{{- toJson (mustMergeOverwrite (deepCopy $root.Values.workerDefaults) (default dict (index $root.Values.workers (index . 1)))) }}
{{- end }}

{{- define "millrace.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}

{{- define "millrace.databaseSecret" -}}
{{- if .Values.postgres.enabled }}
{{- if .Values.database.existingSecret }}{{ fail "database.existingSecret is set, and postgres.enabled too. Set postgres.enabled=false to use your own Postgres." }}{{ end }}
{{- include "millrace.fullname" . }}-services
{{- else }}{{ required "Set database.existingSecret, the Secret with the URL of your Postgres, or postgres.enabled=true." .Values.database.existingSecret }}
{{- end }}
{{- end }}

{{- define "millrace.databaseKey" -}}
{{ ternary "database-url" .Values.database.existingSecretKey .Values.postgres.enabled }}
{{- end }}

{{- define "millrace.queueSecret" -}}
{{- if .Values.valkey.enabled }}
{{- if .Values.queue.existingSecret }}{{ fail "queue.existingSecret is set, and valkey.enabled too. Set valkey.enabled=false to use your own Valkey or Redis." }}{{ end }}
{{- include "millrace.fullname" . }}-services
{{- else }}{{ required "Set queue.existingSecret, the Secret with the URL of your Valkey or Redis, or valkey.enabled=true." .Values.queue.existingSecret }}
{{- end }}
{{- end }}

{{- define "millrace.queueKey" -}}
{{ ternary "redis-url" .Values.queue.existingSecretKey .Values.valkey.enabled }}
{{- end }}

{{- define "millrace.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "millrace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The start of every pod's spec. Without service links: a Service named millrace would set MILLRACE_PORT. */}}
{{- define "millrace.podStart" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "millrace.graceSeconds" -}}
{{ add .Values.drainSeconds 20 }}
{{- end }}

{{/* Spreads the pods of a component over hosts and zones. Given a list of the root and the labels of the component. */}}
{{- define "millrace.spread" -}}
{{- $root := index . 0 }}
{{- $labels := index . 1 }}
topologySpreadConstraints:
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "millrace.selector" $root | nindent 8 }}
        {{- toYaml $labels | nindent 8 }}
{{- end }}
{{- end }}

{{/* Where a pod may run. Given its values. */}}
{{- define "millrace.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Do some workers start only when work waits? */}}
{{- define "millrace.scalesFromZero" -}}
{{- $root := . }}
{{- range $name, $_ := .Values.workers }}
{{- $class := include "millrace.workerClass" (list $root $name) | fromJson }}
{{- if and $class.enabled $class.keda.enabled (eq (int $class.keda.minReplicas) 0) }}yes{{ end }}
{{- end }}
{{- end }}

{{/* The environment of every process. Secrets are files. Given a list of the root and further settings. */}}
{{- define "millrace.env" -}}
{{- $root := index . 0 }}
{{- $settings := dict "state_dir" "/data" "host" "0.0.0.0" "port" $root.Values.api.port "drain_seconds" $root.Values.drainSeconds }}
{{- if $root.Values.files.url }}{{ $_ := set $settings "files_url" $root.Values.files.url }}
{{- else }}{{ $_ := set $settings "files_dir" "/files" }}{{ end }}
{{- if $root.Values.models }}{{ $_ := set $settings "models_dir" "/models" }}{{ end }}
{{- if include "millrace.scalesFromZero" $root }}{{ $_ := set $settings "chats_wait_for_workers" true }}{{ end }}
{{- if $root.Values.metrics.enabled }}
{{- $_ := set $settings "metrics_port" $root.Values.metrics.port }}
{{- $_ := set $settings "metrics_host" "0.0.0.0" }}
{{- end }}
{{- $settings = mustMergeOverwrite $settings (deepCopy $root.Values.settings) (index . 1) -}}
- name: DATABASE_URL_FILE
  value: /run/secrets/millrace/database-url
- name: REDIS_URL_FILE
  value: /run/secrets/millrace/redis-url
- name: HOME
  value: /tmp
{{- range $name, $value := $settings }}
- name: MILLRACE_{{ upper $name }}
  value: {{ if and (kindIs "float64" $value) (eq (floor $value) $value) }}{{ printf "%.0f" $value | quote }}{{ else }}{{ toString $value | quote }}{{ end }}
{{- end }}
{{- with $root.Values.secretEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The mounts of every process, and the volumes behind them. */}}
{{- define "millrace.mounts" -}}
- name: secrets
  mountPath: /run/secrets/millrace
  readOnly: true
- name: data
  mountPath: /data
- name: tmp
  mountPath: /tmp
{{- if .Values.models }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- end }}

{{- define "millrace.volumes" -}}
{{- $root := index . 0 -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ include "millrace.databaseSecret" $root }}
          items:
            - key: {{ include "millrace.databaseKey" $root }}
              path: database-url
      - secret:
          name: {{ include "millrace.queueSecret" $root }}
          items:
            - key: {{ include "millrace.queueKey" $root }}
              path: redis-url
- name: data
  emptyDir:
    sizeLimit: {{ index . 1 }}
- name: tmp
  emptyDir:
    sizeLimit: {{ index . 1 }}
{{- if $root.Values.models }}
- name: models
  configMap:
    name: {{ include "millrace.fullname" $root }}-models
{{- end }}
{{- end }}

{{/* The file store, for apis and clerks. */}}
{{- define "millrace.filesMount" -}}
{{- if not .Values.files.url }}
- name: files
  mountPath: /files
{{- end }}
{{- end }}

{{- define "millrace.filesVolume" -}}
{{- if not .Values.files.url }}
- name: files
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-files" (include "millrace.fullname" .)) .Values.files.existingClaim }}
{{- end }}
{{- end }}

{{/* Where a class of workers has its weights. Given a list of the class and whether its pod downloads them. */}}
{{- define "millrace.weightsVolume" -}}
{{- $weights := . }}
{{- if $weights.existingClaim }}
- name: weights
  persistentVolumeClaim:
    claimName: {{ $weights.existingClaim }}
{{- else if $weights.hostPath }}
- name: weights
  hostPath:
    path: {{ $weights.hostPath }}
    type: Directory
{{- else if $weights.downloads }}
- name: weights
  emptyDir:
    sizeLimit: {{ $weights.downloadSize }}
{{- end }}
{{- end }}

{{/* A container that waits for the schema, so that no process starts before the migrations have run. */}}
{{- define "millrace.waitForSchema" -}}
- name: wait-for-schema
  image: {{ index . 1 }}
  imagePullPolicy: {{ (index . 0).Values.image.pullPolicy }}
  command: [millrace, db, check, --wait, "900"]
  env:
    {{- include "millrace.env" (list (index . 0) dict) | nindent 4 }}
  securityContext:
    {{- include "millrace.containerSecurity" . | nindent 4 }}
  resources:
    requests: {cpu: 50m, memory: 128Mi}
    limits: {memory: 384Mi}
  volumeMounts:
    {{- include "millrace.mounts" (index . 0) | nindent 4 }}
{{- end }}
