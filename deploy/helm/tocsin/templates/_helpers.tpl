{{- define "tocsin.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "tocsin.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "tocsin.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "tocsin.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* The labels that select pods: they never change. */}}
{{- define "tocsin.selector" -}}
app.kubernetes.io/name: {{ include "tocsin.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tocsin.labels" -}}
{{ include "tocsin.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* The parts of a pod that all have in common. */}}
{{- define "tocsin.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false # variables of services would be taken for settings
{{- with .Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: 1Gi}
  {{- with .Values.files.existingSecret }}
  - name: files
    secret: {secretName: {{ . }}, defaultMode: 0440}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "tocsin.container" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
env:
  - name: TOCSIN_DATABASE_URL
    valueFrom: {secretKeyRef: {name: {{ .Values.database.existingSecret }}, key: {{ .Values.database.key }}}}
  - {name: TOCSIN_HOST, value: 0.0.0.0}
  - {name: TOCSIN_PORT, value: "8080"}
  - {name: TOCSIN_OPERATIONS_PORT, value: "9090"}
  {{- range $name, $value := mergeOverwrite (dict "TOCSIN_LOG_FORMAT" "json") .Values.settings }}
  - {name: {{ $name }}, value: {{ $value | toString | quote }}}
  {{- end }}
{{- with .Values.existingSecrets }}
envFrom:
  {{- range . }}
  - secretRef: {name: {{ . }}}
  {{- end }}
{{- end }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- if .Values.files.existingSecret }}
  - {name: files, mountPath: /etc/tocsin/files, readOnly: true}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- /* A deployment: of .component with its .values and .args, which is probed at its .port and sleeps before it stops. */}}
{{- define "tocsin.deployment" -}}
{{- $root := .root -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "tocsin.fullname" $root }}-{{ .component }}
  labels:
    {{- include "tocsin.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  {{- if not .values.autoscaling.enabled }}
  replicas: {{ .values.replicas }}
  {{- end }}
  strategy:
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
  selector:
    matchLabels:
      {{- include "tocsin.selector" $root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
  template:
    metadata:
      labels:
        {{- include "tocsin.labels" $root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
        {{- with $root.Values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $root.Values.podAnnotations }}
      annotations: {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "tocsin.pod" $root | nindent 6 }}
      terminationGracePeriodSeconds: {{ add $root.Values.stopSeconds .preStopSeconds }}
      topologySpreadConstraints:
        {{- range $root.Values.topologyKeys }}
        - maxSkew: 1
          topologyKey: {{ . }}
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "tocsin.selector" $root | nindent 14 }}
              app.kubernetes.io/component: {{ $.component }}
        {{- else }} []
        {{- end }}
      containers:
        - name: tocsin
          {{- include "tocsin.container" $root | nindent 10 }}
          args: {{ toJson .args }}
          ports:
            {{- if eq .port "http" }}
            - {name: http, containerPort: 8080}
            {{- end }}
            - {name: operations, containerPort: 9090}
          # It listens when it has found the database (60 s) and migrated the schema (10 minutes for locks).
          startupProbe:
            httpGet: {path: /healthz, port: {{ .port }}}
            periodSeconds: 5
            failureThreshold: 144
          livenessProbe:
            httpGet: {path: /healthz, port: {{ .port }}}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /readyz, port: {{ .port }}}
            periodSeconds: 5
            timeoutSeconds: 5
            failureThreshold: 2
          {{- if .preStopSeconds }}
          lifecycle:
            preStop: {exec: {command: [sleep, "{{ .preStopSeconds }}"]}}
          {{- end }}
          resources: {{- toYaml .values.resources | nindent 12 }}
{{- end }}

{{- define "tocsin.metadata" -}}
metadata:
  name: {{ include "tocsin.fullname" .root }}-{{ .component }}
  labels:
    {{- include "tocsin.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- /* An age is no measure of how many workers are missing, so they are added a few at a time. */}}
{{- define "tocsin.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 30
  policies: [{type: Pods, value: 2, periodSeconds: 60}]
scaleDown:
  stabilizationWindowSeconds: 600
  policies: [{type: Pods, value: 1, periodSeconds: 60}]
{{- end }}
